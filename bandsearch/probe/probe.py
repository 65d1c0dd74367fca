"""The probe: which layers a data set pulls at, which learning rates train, and which bands to try first."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.data.dataset import Encoded
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import DivergedError
from bandsearch.probe.effort import RANK, Effort, ProbeSettings, Stopwatch, effort_for
from bandsearch.probe.gradients import module_sensitivities
from bandsearch.probe.hidden import hidden_states, layer_views, relative_changes
from bandsearch.probe.masking import Worth, worth_of_parts
from bandsearch.probe.proposals import propose
from bandsearch.probe.rates import LOWEST, range_test
from bandsearch.probe.scores import coherence_by_layer, layer_scores
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import ModelError
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.profile import LayerViews, ModuleSensitivity, RateRange, SensitivityProfile
from bandsearch.values.progress import Listener, Update, silent

__all__ = ["ProbeSettings", "run_probe"]

# Shares of the deadline by which each part has to be done.
GRADIENTS_BY, RANGE_BY, RUN_BY, MASKS_BY = 0.15, 0.6, 0.75, 0.95


def run_probe(engine: Engine, settings: ProbeSettings, listen: Listener = silent) -> SensitivityProfile:
    """Probe the engine's model on the engine's data.

    Gradients at the initial full-depth LoRA factors, a learning-rate range test, a short full-depth run at the best
    rate, the three views of base and run, and what the run's parts are worth. A layer's score is the mean rank of
    three signals: the coherence of its gradients, the gain it keeps alone, and the gain that is missing without it.
    The views are shown and not scored: where one layer was planted to be the one that matters, 1 - CKA, 1 - cosine and
    ||dW||/||W|| ordered layers by depth whichever was planted. Without a deadline the result depends on the seed
    alone. Raises ModelError where training diverges at every rate.
    """
    return _Probe(engine, settings, listen).profile()


class _Probe:
    def __init__(self, engine: Engine, settings: ProbeSettings, listen: Listener) -> None:
        self.engine, self.layout, self.settings, self.listen = engine, engine.layout, settings, listen
        self.watch = Stopwatch(settings.deadline)
        self.effort: Effort = effort_for(settings, engine.layout.layer_count)
        self.validation: Sequence[Encoded] = engine.dataset.validation[: self.effort.validation_examples]
        self.sessions: dict[float, str] = {}

    def profile(self) -> SensitivityProfile:
        modules = self._gradients()
        rate_range = self._rates()
        rate, session = self._short_run(rate_range.best)
        views = self._views(session, rate)
        worth = self._worth(session)
        self.engine.evict(session)
        coherence = coherence_by_layer(modules, self.layout.layer_count)
        scores = layer_scores([signal for signal in (coherence, worth.alone, worth.missing) if signal is not None])
        self._say("layers ranked, bands proposed", 1.0)
        return SensitivityProfile(
            model=self.layout.family,
            layer_count=self.layout.layer_count,
            modules=modules,
            views=views,
            layer_scores=scores,
            rate_range=rate_range,
            proposals=propose(scores, worth.kept),
            seconds=self.watch.seconds,
        )

    def _gradients(self) -> tuple[ModuleSensitivity, ...]:
        examples = self.engine.dataset.train[: self.effort.gradient_examples]
        self._say(f"gradients of {len(examples)} examples", 0.0)
        session = self._admit(10.0**LOWEST)
        try:
            with self.engine.attached(session) as model:
                seconds, recomputes = self.watch.left(GRADIENTS_BY), self.engine.recomputes
                return module_sensitivities(model, self.layout, examples, seconds, recomputes=recomputes)
        finally:
            self.engine.evict(session)

    def _rates(self) -> RateRange:
        """The range test; the best rate's session stays open, so that the short run goes on from it."""
        self._say("learning-rate range test", GRADIENTS_BY)
        base = self._admit(10.0**LOWEST)
        base_loss = self.engine.advance(base, 0).loss
        self.engine.evict(base)
        steps, least, longest = self.effort.range_steps, base_loss, 0.0

        def loss_at(rate: float) -> float | None:
            nonlocal least, longest
            started = self.watch.seconds
            session = self._admit(rate)
            try:
                loss = self.engine.advance(session, steps).loss
            except DivergedError:
                self.engine.evict(session)
                return None
            longest = max(longest, self.watch.seconds - started)
            self._say(f"rate {rate:.1e}: loss {base_loss:.3f} -> {loss:.3f} in {steps} steps")
            self.sessions[rate] = session
            if loss < least:
                least = loss
                self._evict_all_but(rate)
            return loss

        return range_test(
            base_loss, loss_at, lambda runs: runs < self.effort.range_runs and self.watch.allows(RANGE_BY, longest)
        )

    def _short_run(self, best: float) -> tuple[float, str]:
        """The rate and session of a short full-depth run: at the best rate, or the highest below it that trains."""
        self._evict_all_but(best)
        rate, steps = best, self.effort.short_steps
        while rate >= 10.0**LOWEST / 2:
            self._say(f"short full-depth run, {steps} steps at {rate:.1e}", RANGE_BY)
            session = self.sessions.pop(rate, None) or self._admit(rate)
            try:
                self.engine.advance(session, steps, self.watch.left(RUN_BY))
            except DivergedError:
                self.engine.evict(session)
                rate /= 10**0.5
            else:
                return rate, session
        raise ModelError(
            f"A short training diverges at every learning rate from {best:.0e} down to {10.0**LOWEST:.0e}.",
            "Check the data for broken examples, or load the model with --dtype fp32.",
        )

    def _views(self, session: str, rate: float) -> tuple[LayerViews, ...]:
        self._say("three views of every layer", RUN_BY)
        examples = self.engine.dataset.validation[: self.effort.view_examples]
        with self.engine.attached(session) as model:
            tuned = hidden_states(model, self.layout, examples)
        tensors = self.engine.adapter(session)
        with self.engine.attached(None) as model:
            base = hidden_states(model, self.layout, examples)
            changes = relative_changes(model, self.layout, tensors, self._candidate(rate).scale)
        return layer_views(base, tuned, changes, self.engine.device)

    def _worth(self, session: str) -> Worth:
        self._say("what the run's parts are worth", 0.85)
        with self.engine.attached(session) as model:
            return worth_of_parts(model, self.layout, self.validation, lambda: self.watch.allows(MASKS_BY))

    def _admit(self, rate: float) -> str:
        fidelity = Fidelity(
            steps=self.effort.short_steps,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            validation_examples=self.effort.validation_examples,
        )
        return self.engine.admit(self._candidate(rate), fidelity)

    def _candidate(self, rate: float) -> Candidate:
        alpha = self.settings.space.alpha_at(RANK)
        return Candidate.full_depth(self.layout.layer_count, rank=RANK, alpha=alpha, learning_rate=rate)

    def _evict_all_but(self, rate: float) -> None:
        for other in [each for each in self.sessions if each != rate]:
            self.engine.evict(self.sessions.pop(other))

    def _say(self, message: str, done: float | None = None) -> None:
        self.listen(Update(stage="probe", message=message, done=done))
