"""Planted tables: what a build would have left, from a formula instead of trainings."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from bandsearch.values.band import Band
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.profile import BandProposal, LayerViews, ModuleSensitivity, RateRange, SensitivityProfile
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry, best_rate
from benchmarks.bandbench.rows import Header, Row
from benchmarks.bandbench.table import Table, table_of

LAYERS = 12
BEST_RATE = 0.01
PLANTED = (5, 9)
DESIGN = Design(rate_factors=(0.4, 1.0, 2.5), full_rates=2)
LAYOUT = Layout(
    family="planted",
    layers_path="model.layers",
    layer_count=LAYERS,
    hidden_size=32,
    linears=(
        Linear(name="self_attn.q_proj", group="attention", in_features=32, out_features=32),
        Linear(name="mlp.up_proj", group="mlp", in_features=32, out_features=64),
    ),
)

Surface = Callable[[Entry, float], float]


def planted(entry: Entry, rate: float) -> float:
    """Where training leads: layers 5 to 8 matter, the others cost a little; one rate is right."""
    inside = sum(PLANTED[0] <= layer < PLANTED[1] for layer in entry.layers)
    beside = len(entry.layers) - inside
    missing = PLANTED[1] - PLANTED[0] - inside
    off = abs(math.log10(rate / BEST_RATE))
    return 0.2 + 0.12 * missing + 0.01 * beside + 0.15 * off + (0.01 if entry.targets == "mlp" else 0.0)


def flat(entry: Entry, rate: float) -> float:
    """No band, rank or target is better than another."""
    return 0.3 + 0.15 * abs(math.log10(rate / BEST_RATE))


def header(task: str = "two_step", control: bool = False, design: Design = DESIGN) -> Header:
    return Header(
        task=task,
        control=control,
        layout=LAYOUT,
        rungs=design.rungs,
        full_steps=design.full_steps,
        alpha=design.alpha,
        batch_size=design.batch_size,
        validation_examples=design.validation_examples,
        rates=design.rates(BEST_RATE),
    )


def profile(good: tuple[int, int] = PLANTED, seconds: float = 5.0) -> SensitivityProfile:
    """A probe that sees the planted layers faintly, and a view per layer."""
    weights = [1.5 if good[0] <= layer < good[1] else 1.0 for layer in range(LAYERS)]
    return SensitivityProfile(
        model="planted",
        layer_count=LAYERS,
        modules=tuple(
            ModuleSensitivity(layer=layer, module="mlp.up_proj", raw=2.0 - layer / 12, normalised=weight / 2)
            for layer, weight in enumerate(weights)
        ),
        views=tuple(
            LayerViews(
                layer=layer,
                entropy_base=0.5,
                entropy_tuned=0.5 + layer / 100,
                effective_rank_base=10,
                effective_rank_tuned=10 + layer,
                cka=1 - layer / 100,
                cosine=1 - layer / 50,
                curvature_base=0.5,
                curvature_tuned=0.5,
                relative_change=0.01 * weight,
            )
            for layer, weight in enumerate(weights)
        ),
        layer_scores=tuple(weight / sum(weights) for weight in weights),
        rate_range=RateRange(low=BEST_RATE / 10, best=BEST_RATE, high=BEST_RATE * 2),
        proposals=(BandProposal(band=Band(start=0, stop=6), score=0.5, reason="a guess"),),
        seconds=seconds,
    )


def never(entry: Entry, rate: float, seed: int) -> bool:
    return False


def rows(
    surface: Surface,
    noise: float = 0.01,
    seed: int = 0,
    design: Design = DESIGN,
    haste: float = 4.0,
    breaks: Callable[[Entry, float, int], bool] = never,
) -> list[Row]:
    """What `build` would write, in its order. `haste`: how much faster than a narrow band a wide one learns early.
    `breaks`: whether a training ends one nat higher."""
    source = random.Random(f"planted {seed}")
    shared = [source.gauss(0, noise) for _ in range(design.seeds)]
    rates = design.rates(BEST_RATE)

    def losses(entry: Entry, rate: float, at: int) -> list[float]:
        own = source.gauss(0, noise)
        speed = 4 + haste * len(entry.layers) / LAYERS
        end = surface(entry, rate)
        clean = [end + (1.5 - end) * math.exp(-speed * steps / design.full_steps) for steps in design.rungs]
        broken = [0.0] * len(clean) + [float(breaks(entry, rate, at))]
        own += shared[at]
        return [
            loss + own + source.gauss(0, noise / 3) + more for loss, more in zip((*clean, end), broken, strict=True)
        ]

    def seconds(entry: Entry, steps: int) -> float:
        return 0.1 * steps * (1 - entry.start / LAYERS / 1.5)

    def trained(entry: Entry, rate: float, at: int, curve: list[float], rungs: int) -> Row:
        readings = tuple((steps, curve[i], seconds(entry, steps)) for i, steps in enumerate(design.rungs[:rungs]))
        return Row(entry=entry, rate=rate, seed=at, kind="proxy", readings=readings)

    def full(entry: Entry, rate: float, at: int, curve: list[float]) -> Row:
        reading = (design.full_steps, curve[-1], seconds(entry, design.full_steps))
        return Row(entry=entry, rate=rate, seed=at, kind="full", readings=(reading,))

    found: list[Row] = []
    ends: dict[Entry, float] = {}
    best_rates: dict[Entry, float] = {}
    for entry in design.entries(LAYERS):
        curves = {rate: losses(entry, rate, 0) for rate in rates}
        count = design.trained_in_full(entry)
        chosen = sorted(rates, key=lambda rate: curves[rate][0])[:count]
        if (entry.rank, entry.targets) != design.habit:
            rank, targets = design.habit
            chosen = [best_rates[Entry(bands=entry.bands, rank=rank, targets=targets)]]
        best_rates[entry] = best_rate({rate: curves[rate][-1] for rate in chosen})
        ends[entry] = curves[best_rates[entry]][-1]
        found += [trained(entry, rate, 0, curves[rate], len(design.rungs) if rate in chosen else 1) for rate in rates]
        found += [full(entry, rate, 0, curves[rate]) for rate in chosen]
    whole = {(row.entry, row.rate) for row in found if row.kind == "full"}
    for entry in design.survivors(ends, LAYERS):
        every = [rate for rate in rates if (entry, rate) in whole] if design.at_all_rates(entry, LAYERS) else []
        for rate in dict.fromkeys((best_rates[entry], *every)):
            for at in range(1, design.seeds):
                curve = losses(entry, rate, at)
                found.append(trained(entry, rate, at, curve, len(design.rungs)))
                found.append(full(entry, rate, at, curve))
    return found


def table(
    surface: Surface = planted, *, noise: float = 0.01, task: str = "two_step", seed: int = 0, haste: float = 4.0
) -> Table:
    made = table_of(header(task, control=task == "toss"), profile(), rows(surface, noise, seed, haste=haste))
    assert made is not None
    return made
