"""A planted loss surface, and engines that read it off: what a search can be judged against.

Wide bands learn faster early; one narrow band at one rate is best late. Losses are nats per token.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

from costs import costs_of

from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.plan import Plan, StagePlan
from bandsearch.values.profile import BandProposal, RateRange, SensitivityProfile
from bandsearch.values.trial import Point, TrialResult

LAYERS = 12
LAYOUT = Layout(
    family="planted",
    layers_path="model.layers",
    layer_count=LAYERS,
    hidden_size=32,
    linears=(
        Linear(name="self_attn.q_proj", group="attention", in_features=32, out_features=32),
        Linear(name="self_attn.v_proj", group="attention", in_features=32, out_features=32),
        Linear(name="mlp.up_proj", group="mlp", in_features=32, out_features=64),
        Linear(name="mlp.down_proj", group="mlp", in_features=64, out_features=32),
    ),
)
RATES = RateRange(low=1e-4, best=1e-3, high=1e-2)


@dataclass(frozen=True)
class Surface:
    """A planted optimum: band `start` to `start + width` at `rate`. Full training takes `full_steps`."""

    start: int = 4
    width: int = 4
    rate: float = 3e-3
    noise: float = 0.01
    full_steps: int = 270
    diverges_above: float = 1.0
    out_of_memory_above: int = 10**9

    def optimum(self) -> Candidate:
        """The best candidate of the default space."""
        band = Band(start=self.start, stop=self.start + self.width)
        return Candidate(bands=(band,), rank=32, alpha=32, targets=("all",), learning_rate=self.rate)

    def end_loss(self, candidate: Candidate) -> float:
        """Where training leads in the end, without noise. The planted optimum has 0.2."""
        layers = candidate.layers
        centre, width = sum(layers) / len(layers) + 0.5, len(layers)
        misplaced = ((centre - self.start - self.width / 2) / LAYERS) ** 2 * 2.0
        missized = (0.12 if width > self.width else 0.25) * abs(math.log(width / self.width))
        rate = 0.12 * math.log10(candidate.learning_rate / self.rate) ** 2
        rank = 0.05 / candidate.rank
        targets = {"all": 0.0, "mlp": 0.02, "attention": 0.05}["+".join(candidate.targets)]
        return 0.2 + misplaced + missized + rate + rank + targets

    def loss(self, candidate: Candidate, steps: int, seed: int) -> float:
        speed = 4.0 + 4.0 * len(candidate.layers) / LAYERS
        end = self.end_loss(candidate)
        return self.noisy(end + (1.5 - end) * math.exp(-speed * steps / self.full_steps), candidate, steps, seed)

    def noisy(self, clean: float, candidate: Candidate, steps: int, seed: int) -> float:
        key = f"{candidate.identity} {steps} {seed}"
        return clean + random.Random(hashlib.sha256(key.encode()).digest()).gauss(0, self.noise)


@dataclass
class PlantedPool:
    """Answers as `EnginePool` does, from a surface. Every process that it travels to has sessions of its own."""

    surface: Surface
    size: int = 1
    seconds_per_step: float = 0.0
    sessions: dict[str, tuple[Candidate, Fidelity, int]] = field(default_factory=dict)
    trainings: int = 0

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return (index, method, args)

    def get(self, reference: Any) -> Any:
        _, method, args = reference
        return {"admit": self._admit, "advance": self._advance, "evict": self.sessions.pop}[method](*args)

    def _admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        self.trainings += 1
        session = f"session {self.trainings}"
        self.sessions[session] = (candidate, fidelity, 0)
        return session

    def _advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        candidate, fidelity, done = self.sessions[session]
        if candidate.learning_rate > self.surface.diverges_above:
            raise DivergedError("the training loss is not a number")
        if len(candidate.layers) * candidate.rank > self.surface.out_of_memory_above:
            raise OutOfMemoryError("the engine ran out of memory")
        if deadline is not None and self.seconds_per_step:
            steps = min(steps, done + int(deadline / self.seconds_per_step))
        time.sleep(self.seconds_per_step * (steps - done))
        self.sessions[session] = (candidate, fidelity, steps)
        return Point(steps=steps, loss=self.surface.loss(candidate, steps, fidelity.seed), seconds=0.01 * steps)


def profile(layers: int = LAYERS, rates: RateRange = RATES) -> SensitivityProfile:
    """A probe that knows nothing: equal scores, one proposal in the wrong place."""
    return SensitivityProfile(
        model="planted",
        layer_count=layers,
        modules=(),
        views=(),
        layer_scores=(1 / layers,) * layers,
        rate_range=rates,
        proposals=(BandProposal(band=Band(start=0, stop=max(1, layers // 2)), score=1.0, reason="a guess"),),
        seconds=0,
    )


def plan(
    *,
    trials: int | None = None,
    expected: int = 40,
    engines: int = 1,
    rungs: tuple[int, ...] = (30, 90),
    full_steps: int = 270,
    confirm_seeds: int = 3,
    finalists: int = 4,
    seconds_per_step: float = 1e-6,
    confirm_steps: int | None = None,
) -> Plan:
    costs = costs_of(seconds_per_step)
    return Plan(
        engines=engines,
        packing=1,
        costs=costs,
        wall_seconds=None,
        batch_size=16,
        full_steps=full_steps,
        rungs=rungs,
        trial_limit=trials,
        expected_trials=trials or expected,
        confirm_steps=confirm_steps or 2 * full_steps // 3,
        confirm_seeds=confirm_seeds,
        finalists=finalists,
        validation_examples=64,
        test_examples=1,
        generated_examples=0,
        stages=(StagePlan(name="search", seconds=0, detail=""),),
        disk_bytes=0,
        memory_bytes=0,
    )


class MemoryRecords:
    """Records that live as long as the test; every line is written and read as JSON, as on disk."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def append(self, result: TrialResult) -> None:
        self.lines.append(result.model_dump_json())

    def results(self) -> list[TrialResult]:
        return [TrialResult.model_validate_json(line) for line in self.lines]
