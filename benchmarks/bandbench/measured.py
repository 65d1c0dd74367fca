"""Signals that a run's probe does not take, measured once per task beside its table.

Of layers: what the base alone says (ShortGPT's block influence, arXiv 2403.03853; 1 - CKA between a layer's input and
output; the share of its weights' spectrum above that of noise, Marchenko and Pastur), and the Fisher information of
the initial gradients. Of bands: one training for all of them, read band by band with the other layers' factors left
out. It trains all layers at every step (the masked run), or at every step the layers of a random band (a supernet, as
in one-shot architecture search, arXiv 1904.00420), or each band for a few steps of its own from there (a warm start).
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bandsearch.adapters.lora import attach, detach
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.engine.passes import Passes
from bandsearch.engine.scoring import split_losses
from bandsearch.engine.session import Session
from bandsearch.engine.training import Trainer
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import dense_weight, load_model
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.probe.factors import b_factors
from bandsearch.probe.forward import token_losses
from bandsearch.probe.hidden import decoder_layers
from bandsearch.probe.views import linear_cka, mean_cosine
from bandsearch.rundir import write_atomically
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity, Schedule
from bandsearch.values.layout import Layout
from bandsearch.values.levers import Levers
from bandsearch.values.spec import DataSpec, ModelSpec
from bandsearch.values.value import Value
from benchmarks.bandbench.build import MODEL
from benchmarks.bandbench.rows import Header, Rows
from benchmarks.ours import token_mean

EXAMPLES, TOKENS = 32, 512
WARM_STEPS = 15
Pair = tuple[int, int]


class Measured(Value):
    """`layers`: a number per layer by signal; `bands`: (start, stop, number) by signal; larger should mean better.
    `seconds` by signal, of one core."""

    layers: dict[str, tuple[float, ...]]
    bands: dict[str, tuple[tuple[int, int, float], ...]]
    seconds: dict[str, float]


def load_measured(folder: Path, task: str) -> Measured | None:
    path = folder / f"{task}.signals.json"
    return Measured.model_validate_json(path.read_text()) if path.exists() else None


def measure(folder: Path, task: str, habit: tuple[int, str]) -> None:
    """Write `<task>.signals.json` beside the task's table, unless it is there, for the habit's rank and targets."""
    path, header = folder / f"{task}.signals.json", Rows(folder / f"{task}.jsonl").header
    if path.exists() or header is None:
        return
    torch.set_num_threads(1)
    source = resolve(ModelSpec(name=MODEL))
    tokenizer, model = load_tokenizer(source), load_model(source, "float32", "cpu")
    dataset = prepare(DataSpec(name=f"demo:{header.task}"), tokenizer, 0)
    measured = _Measuring(model, layout_of(model), dataset, tokenizer.pad_token_id, header, habit).all()
    write_atomically(path, measured.model_dump_json())


class _Measuring:
    def __init__(
        self, model: nn.Module, layout: Layout, dataset: Dataset, pad: int, header: Header, habit: tuple[int, str]
    ) -> None:
        self.model, self.layout, self.dataset, self.pad, self.header = model, layout, dataset, pad, header
        self.rank, self.targets = habit
        self.layers: dict[str, tuple[float, ...]] = {}
        self.bands: dict[str, tuple[tuple[int, int, float], ...]] = {}
        self.seconds: dict[str, float] = {}

    def all(self) -> Measured:
        self._timed("Fisher information", self._fisher)
        self._timed("block influence", lambda: self._through(lambda before, after: 1 - mean_cosine(before, after)))
        self._timed("1 − CKA(in, out)", lambda: self._through(lambda before, after: 1 - linear_cka(before, after)))
        self._timed("weights above noise", self._spectrum)
        rung, full = self.header.rungs[-1], self.header.full_steps
        slow, fast = self.header.rates[0], self.header.rates[len(self.header.rates) // 2]
        for steps, rate in itertools.product((rung, full), (slow, fast)):
            at = f"{steps} steps{'' if rate == slow else ', higher rate'}"
            started = time.process_time()
            self._band_signal(f"masked run, {at}", self._trained(steps, rate, _every), started)
            started = time.process_time()
            net = self._trained(steps, rate, _any_band)
            self._band_signal(f"supernet, {at}", net, started)
            if steps == full:
                self._warm_starts(f"warm start, {WARM_STEPS} after {at}", net, started)
        return Measured(layers=self.layers, bands=self.bands, seconds=self.seconds)

    def _timed(self, name: str, measure: Callable[[], list[float]]) -> None:
        started = time.process_time()
        self.layers[name] = tuple(measure())
        self.seconds[name] = time.process_time() - started

    def _fisher(self) -> list[float]:
        """Per layer the mean squared norm of an example's gradient of B at the initial factors."""
        totals = [0.0] * self.layout.layer_count
        peft = attach(self.model, self._candidate(Band.full(self.layout.layer_count), 1e-3), self.layout, 0)
        try:
            factors = b_factors(peft)
            for example in self.dataset.train[:EXAMPLES]:
                gradients = torch.autograd.grad(token_losses(peft, [example]).mean(), list(factors.values()))
                for path, gradient in zip(factors, gradients, strict=True):
                    totals[int(path.removeprefix(f"{self.layout.layers_path}.").partition(".")[0])] += float(
                        gradient.square().sum()
                    )
        finally:
            detach(peft)
        return totals

    def _through(self, change: Callable[[Tensor, Tensor], float]) -> list[float]:
        """`change` between what goes into a layer of the base and what comes out."""
        states: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.layout.layer_count)]

        def record(into: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                into.append((inputs[0][0], hidden[0]))

            return hook

        layers = decoder_layers(self.model, self.layout)
        handles = [layer.register_forward_hook(record(into)) for layer, into in zip(layers, states, strict=True)]
        try:
            with torch.no_grad():
                for example in self.dataset.validation[:EXAMPLES]:
                    self.model(input_ids=torch.tensor(example.input_ids[None], dtype=torch.long), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        both = [
            (torch.cat([a for a, _ in pairs])[:TOKENS], torch.cat([b for _, b in pairs])[:TOKENS]) for pairs in states
        ]
        return [change(before, after) for before, after in both]

    def _spectrum(self) -> list[float]:
        """Per layer, the mean over its matrices of the share of energy in singular values above the largest of a matrix
        of independent entries, sigma (sqrt(rows) + sqrt(columns)), with sigma from the median entry."""
        found = []
        for layer in range(self.layout.layer_count):
            shares = []
            for linear in self.layout.linears:
                weight = dense_weight(self.model.get_submodule(f"{self.layout.layers_path}.{layer}.{linear.name}"))
                values = torch.linalg.svdvals(weight.float())
                scale = float(weight.float().abs().median()) / 0.6745
                edge = scale * (weight.shape[0] ** 0.5 + weight.shape[1] ** 0.5)
                shares.append(float(values[values > edge].square().sum() / values.square().sum()))
            found.append(sum(shares) / len(shares))
        return found

    def _band_signal(self, name: str, net: Session, started: float) -> None:
        with self._passes() as passes:
            self.bands[name] = tuple((*band, -self._loss(passes, self._part(net, band))) for band in self._all_bands())
        self.seconds[name] = time.process_time() - started

    def _warm_starts(self, name: str, net: Session, started: float) -> None:
        found = []
        with self._passes() as passes:
            trainer = Trainer(passes, self.dataset, length_grouping=True)
            for band in self._all_bands():
                part = self._part(net, band)
                fidelity = net.fidelity.model_copy(update={"schedule": Schedule.CONSTANT, "warmup_steps": 0})
                own = Session.of(
                    name, part.candidate, fidelity, {k: v.detach() for k, v in part.factors.items()}, passes.device
                )
                for _ in range(WARM_STEPS):
                    trainer.step([own])
                found.append((*band, -self._loss(passes, own)))
        self.bands[name] = tuple(found)
        self.seconds[name] = time.process_time() - started

    def _trained(self, steps: int, rate: float, draw: Callable[[random.Random, int], Pair]) -> Session:
        """A full-depth adapter of which every step trains only the layers that `draw` says."""
        header = self.header
        fidelity = Fidelity.final(
            steps, batch_size=header.batch_size, seed=0, validation_examples=header.validation_examples
        )
        count = self.layout.layer_count
        source = random.Random("supernet")
        with self._passes() as passes:
            trainer = Trainer(passes, self.dataset, length_grouping=True)
            net = Session.begin("net", self._candidate(Band.full(count), rate), fidelity, self.layout, passes.device)
            for _ in range(steps):
                trainer.step([self._part(net, draw(source, count))])
                net.step += 1
        return net

    @contextmanager
    def _passes(self) -> Iterator[Passes]:
        """The model in the engine's hands; plain PEFT has it before and after."""
        passes = Passes(self.model, self.layout, self.dataset, self.pad, None)
        passes.use(Levers(prefix_cache=False, liger=False))
        try:
            yield passes
        finally:
            passes.release()

    def _part(self, net: Session, band: Pair) -> Session:
        """The same factors and the same optimiser, with only the band's layers in it."""
        paths = tuple(f"{self.layout.layers_path}.{layer}." for layer in range(*band))
        factors = {name: factor for name, factor in net.factors.items() if any(path in name for path in paths)}
        candidate = self._candidate(Band(start=band[0], stop=band[1]), net.candidate.learning_rate)
        return replace(net, candidate=candidate, factors=factors, train_losses=[])

    def _loss(self, passes: Passes, session: Session) -> float:
        indices = range(len(self.dataset.validation))[: self.header.validation_examples]
        (losses,) = split_losses(passes, self.dataset, "validation", [session], indices)
        return token_mean(losses)

    def _all_bands(self) -> list[Pair]:
        return list(itertools.combinations(range(self.layout.layer_count + 1), 2))

    def _candidate(self, band: Band, rate: float) -> Candidate:
        return Candidate(
            bands=(band,), rank=self.rank, alpha=self.header.alpha, targets=(self.targets,), learning_rate=rate
        )


def _every(source: random.Random, layer_count: int) -> Pair:
    return 0, layer_count


def _any_band(source: random.Random, layer_count: int) -> Pair:
    width = source.randint(1, layer_count)
    start = source.randint(0, layer_count - width)
    return start, start + width
