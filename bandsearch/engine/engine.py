"""The engine: one warm base model, and the one way adapters are trained and judged on it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bandsearch.adapters.lora import attach, detach, load_tensors
from bandsearch.data.dataset import Dataset
from bandsearch.data.kept import open_dataset
from bandsearch.engine.checkpoint import read_session, write_session
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.machine import boot_id
from bandsearch.engine.memory import given_room, too_much
from bandsearch.engine.passes import Passes
from bandsearch.engine.prefix import PrefixCache, cache_key
from bandsearch.engine.replicas import Replicas, leave, leaving
from bandsearch.engine.scoring import ExampleLoss, greedy_answers, split_losses
from bandsearch.engine.selfcheck import TOLERANCE, close, faithful_levers
from bandsearch.engine.session import Session
from bandsearch.engine.setup import EngineSetup
from bandsearch.engine.training import Failure, Trainer
from bandsearch.models.families import layout_of
from bandsearch.models.loading import fingerprint, load_model
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout
from bandsearch.values.levers import Levers
from bandsearch.values.trial import Point

ADAPTER = "One more adapter"


class Engine:
    """Trains candidates on a frozen base, any number admitted at a time, several in one pass where they are asked for
    together. Not thread-safe.

    Deterministic on the CPU: the losses of a candidate that is advanced by itself depend on the candidate, its fidelity
    and the data, not on what the engine did before.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        tokenizer: Any,
        dataset: Dataset,
        threads: int = 1,
        *,
        levers: Levers | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        """Takes hold of `model` until `close`. `cache`: by default one of its own. `notes` says what is off."""
        torch.set_num_threads(threads)
        self.model, self.layout, self.tokenizer, self.dataset = model, layout, tokenizer, dataset
        self.threads, self.device = threads, model.device
        wanted = levers or Levers()
        if wanted.prefix_cache and cache is None:
            cache = PrefixCache(dataset, layout.hidden_size, model.dtype, None, cache_key(dataset))
        self._passes = Passes(
            model,
            layout,
            dataset,
            tokenizer.pad_token_id,
            cache if wanted.prefix_cache else None,
        )
        self.levers, self.notes = faithful_levers(model, layout, self._passes, wanted)
        self._trainer = Trainer(self._passes, dataset, length_grouping=wanted.length_grouping)
        self._sessions: dict[str, Session] = {}
        self._names = map(str, itertools.count())

    @classmethod
    def load(cls, setup: EngineSetup) -> Engine:
        torch.set_num_threads(setup.threads)
        tokenizer = load_tokenizer(setup.source)
        model = load_model(setup.source, setup.dtype, setup.device)
        dataset = open_dataset(Path(setup.data))
        layout = layout_of(model)
        cache = None
        if setup.levers.prefix_cache and setup.cache_directory is not None:
            folder, key = Path(setup.cache_directory), cache_key(dataset, *_facts(setup, model))
            cache = PrefixCache(dataset, layout.hidden_size, model.dtype, folder, key)
        return cls(model, layout, tokenizer, dataset, setup.threads, levers=setup.levers, cache=cache)

    def close(self) -> None:
        """Give the model back bare, so that another engine can be built on it."""
        self._passes.release()

    @property
    def recomputes(self) -> bool:
        """Whether layers may run twice where memory lacks, which was tried when it started."""
        return self._passes.recomputes

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        """Raises OutOfMemoryError where the device has no room for its factors; others have lost nothing then."""
        return self._hold(lambda name: Session.begin(name, candidate, fidelity, self.layout, self.device))

    def adopt(self, candidate: Candidate, tensors: Mapping[str, Tensor]) -> str:
        """A session of factors that were trained elsewhere, by saved name; to be scored. Raises OutOfMemoryError."""
        fidelity = Fidelity(steps=1, batch_size=1, seed=0)
        return self._hold(lambda name: Session.of(name, candidate, fidelity, tensors, self.device))

    def evict(self, session: str) -> None:
        self._sessions.pop(session, None)

    def join(self, store: Path, rank: int, size: int) -> bool:
        """Become one of `size` engines that train sessions together. All of them are asked at once, and meet at the
        file `store`. False for everyone where for anyone a step together does not reproduce that step alone."""
        self._replicas = Replicas(store, rank, size, self.device)
        with leaving():
            alone, together = (self._first_step(size, replicated=replicated) for replicated in (False, True))
            return not self._replicas.any(not close(together, alone, TOLERANCE[self.model.dtype]))

    def part(self) -> None:
        """Leave those that were joined last."""
        leave()

    def replicate(self, session: str) -> None:
        """From now on train it together with those that were joined last, each of whom holds the same session."""
        self._sessions[session].replicas = self._replicas

    def advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        """Train up to `steps` steps in all, or as many as end within `deadline` seconds from now, at least one, then
        validate.

        Raises DivergedError or OutOfMemoryError; the session is gone then.
        """
        state = self._sessions[session]
        started, last_step = time.monotonic(), 0.0
        while state.step < min(steps, state.fidelity.steps):
            begun = time.monotonic()
            if deadline is not None and state.step > 0 and state.agree(begun - started + last_step > deadline):
                break
            for failure in self.train_together([session]).values():
                raise failure
            last_step = time.monotonic() - begun
        point = self.validate_together([session])[session]
        if isinstance(point, Point):
            return point
        raise point

    def train_together(self, sessions: Sequence[str]) -> dict[str, Failure]:
        """One optimiser step of each session. Whose training ended is named with the reason, and gone."""
        started = time.monotonic()
        states = [self._sessions[name] for name in sessions]
        with leaving():
            failures = self._trainer.step(states)
        for name in failures:
            self.evict(name)
        self._charge(states, started)
        return failures

    def try_longest(self, session: str) -> None:
        """Find out whether the longest training example fits into memory; nothing is trained. Raises OutOfMemoryError
        where it does not, even by itself with layers that run twice."""
        self._trainer.try_longest(self._sessions[session])

    def validate_together(self, sessions: Sequence[str]) -> dict[str, Point | Failure]:
        """A reading of each session on the validation split; one without a finite loss is gone."""
        started = time.monotonic()
        states = [self._sessions[name] for name in sessions]
        totals: dict[str, float | OutOfMemoryError] = {}
        for count in sorted({state.fidelity.validation_examples for state in states}):
            alike = [state for state in states if state.fidelity.validation_examples == count]
            with leaving():
                totals |= self._validated(alike, count)
        self._charge(states, started)
        outcome: dict[str, Point | Failure] = {}
        for state in states:
            total = totals[state.name]
            if isinstance(total, OutOfMemoryError):
                outcome[state.name] = total
            elif math.isfinite(total):
                outcome[state.name] = Point(steps=state.step, loss=total, seconds=state.seconds)
            else:
                sentence = f"Validation loss of {state.candidate} is not finite."
                outcome[state.name] = DivergedError(sentence, "Lower the rate.")
            if not isinstance(outcome[state.name], Point):
                self.evict(state.name)
        return outcome

    def holds(self, session: str) -> bool:
        return session in self._sessions

    def progress(self, session: str) -> tuple[int, int]:
        """Steps done, and all that the session's fidelity has."""
        state = self._sessions[session]
        return state.step, state.fidelity.steps

    def next_length(self, session: str) -> int:
        """The longest sequence of the session's next step, in tokens."""
        return self._trainer.next_length(self._sessions[session])

    def mean_length(self, batch_size: int) -> float:
        """The longest sequence of a step, the mean over an epoch's steps at most, in tokens."""
        return self._trainer.mean_length(batch_size)

    def agree(self, session: str, flag: bool) -> bool:
        """Whether it is true for any of the engines that train the session."""
        return self._sessions[session].agree(flag)

    def adapter(self, session: str) -> dict[str, Tensor]:
        """The factors by PEFT's saved names; copies on the CPU in fp32."""
        return self._sessions[session].tensors()

    def train_losses(self, session: str) -> list[float]:
        return list(self._sessions[session].train_losses)

    @contextmanager
    def attached(self, session: str | None) -> Iterator[Any]:
        """The model as PEFT has it with the session's adapter on, or the bare base. Raises OutOfMemoryError where the
        device has no room for that."""
        if session is None:
            yield self.model
            return
        state = self._sessions[session]
        attaching = partial(attach, self.model, state.candidate, self.layout, state.fidelity.seed)
        peft = given_room(attaching, ADAPTER)
        try:
            load_tensors(peft, state.tensors())
            yield peft.eval()
        finally:
            detach(peft)

    def losses(self, split: str, session: str | None, limit: int | None = None, start: int = 0) -> list[ExampleLoss]:
        """The losses of at most `limit` examples of a split from `start` on, in its order."""
        state = None if session is None else self._sessions[session]
        indices = range(len(getattr(self.dataset, split)))[start:][:limit]
        return split_losses(self._passes, self.dataset, split, [state], indices)[0]

    def generate(
        self, split: str, session: str | None, limit: int, max_new_tokens: int | None = None, start: int = 0
    ) -> list[str | None]:
        """Greedy continuations of at most `limit` prompts of a split from `start` on; see `greedy_answers`."""
        examples = getattr(self.dataset, split)[start:][:limit]
        with self.attached(session) as model:
            return greedy_answers(model, self.tokenizer, examples, self.dataset.stop_ids, max_new_tokens)

    def checkpoint(self, session: str, path: Path) -> None:
        """Write everything needed to go on bit for bit to the file `path`, all or nothing."""
        write_session(self._sessions[session], path)

    def restore(self, path: Path) -> str:
        """Raises OutOfMemoryError."""
        return self._hold(lambda name: read_session(name, path, self.device))

    def _hold(self, begin: Callable[[str], Session]) -> str:
        name = next(self._names)
        self._sessions[name] = given_room(partial(begin, name), ADAPTER)
        return name

    def _validated(self, alike: Sequence[Session], count: int) -> Mapping[str, float | OutOfMemoryError]:
        """Of sessions that are read on the same `count` examples, by name; together, or where memory does not do for
        one of them each by itself."""
        try:
            return self._validation_losses(alike, count)
        except OutOfMemoryError as error:
            if len(alike) == 1:
                return {alike[0].name: error}
        apart = [self._validated([state], count) for state in alike]
        return {name: total for each in apart for name, total in each.items()}

    def _validation_losses(self, alike: Sequence[Session], count: int) -> dict[str, float]:
        """Of sessions that are read on the same `count` examples, by name."""
        indices = alike[0].share(range(min(count, len(self.dataset.validation))))
        try:
            found = split_losses(self._passes, self.dataset, "validation", alike, indices)
        except OutOfMemoryError:
            # Its replicas wait for a sum.
            alike[0].totals(0.0, 0, True)
            raise
        means: dict[str, float] = {}
        for state, losses in zip(alike, found, strict=True):
            total, tokens, lacking = state.totals(sum(loss * n for loss, n in losses), sum(n for _, n in losses), False)
            if lacking:
                raise too_much()
            means[state.name] = total / tokens
        return means

    def _first_step(self, batch_size: int, *, replicated: bool) -> list[Tensor]:
        """Loss of a first step at full depth, and what it leaves of its gradients."""
        candidate = Candidate.full_depth(self.layout.layer_count, rank=4, alpha=8, learning_rate=1e-4)
        session = self.admit(candidate, Fidelity(steps=1, batch_size=batch_size, seed=0))
        if replicated:
            self.replicate(session)
        state = self._sessions[session]
        for failure in self.train_together([session]).values():
            raise failure
        self.evict(session)
        averages = [moment for name, moment in state.moments().items() if name.endswith("/exp_avg")]
        return [torch.tensor(state.train_losses[0]), *averages]

    def _charge(self, states: Sequence[Session], started: float) -> None:
        share = (time.monotonic() - started) / len(states)
        for state in states:
            state.seconds += share


def _facts(setup: EngineSetup, model: PreTrainedModel) -> tuple[object, ...]:
    """What a hidden state depends on beside the tokens, and since when kept ones are sure to be whole: what the system
    has not written to the disk yet a power cut takes, and may leave a sequence's flag without its states."""
    computed = (fingerprint(setup.source), setup.dtype, str(model.dtype), model.config._attn_implementation)
    return (*computed, model.device.type, version("torch"), version("transformers"), boot_id())
