"""Records of made-up runs."""

from __future__ import annotations

from bandsearch.values.atlas import AtlasRecord, BandReading
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Finalist, Interval, Winner
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.profile import RateRange


def layout_of(layers: int, hidden: int = 32, family: str = "planted") -> Layout:
    linears = (
        Linear(name="self_attn.q_proj", group="attention", in_features=hidden, out_features=hidden),
        Linear(name="mlp.up_proj", group="mlp", in_features=hidden, out_features=2 * hidden),
    )
    return Layout(family=family, layers_path="model.layers", layer_count=layers, hidden_size=hidden, linears=linears)


def candidate_on(start: int, stop: int, rate: float = 3e-3, rank: int = 16) -> Candidate:
    band = Band(start=start, stop=stop)
    return Candidate(bands=(band,), rank=rank, alpha=32, targets=("all",), learning_rate=rate)


def a_record(
    winner: Candidate | None = None,
    *,
    layers: int = 12,
    hidden: int = 32,
    family: str = "planted",
    fingerprint: str = "0123456789abcdef",
    data: str = "mine.jsonl",
    data_fingerprint: str = "d1",
    date: str = "2026-03-01T10:00:00+00:00",
    slug: str = "planted-12",
    others: tuple[Candidate, ...] = (),
) -> AtlasRecord:
    """A run that `winner` won (by default layers 4 to 7) against full depth; `others` were confirmed behind it."""
    chosen = winner or candidate_on(4, 8)
    full = candidate_on(0, layers, 1e-3)
    confirmed = (chosen, *others, *(() if chosen == full else (full,)))
    finalists = tuple(
        Finalist(
            candidate=each,
            role=Role.FULL_DEPTH if each == full else Role.SEARCHED,
            trainable_parameters=100 * len(each.layers),
            steps=100,
            loss=0.305 + 0.01 * place,
            losses=(0.3 + 0.01 * place, 0.31 + 0.01 * place),
        )
        for place, each in enumerate(confirmed)
    )
    wins = chosen != full
    return AtlasRecord(
        date=date,
        model=slug,
        slug=slug,
        fingerprint=fingerprint,
        layout=layout_of(layers, hidden, family),
        data=data,
        data_fingerprint=data_fingerprint,
        shape="prompt/completion",
        layer_scores=(1 / layers,) * layers,
        rates=RateRange(low=1e-4, best=1e-3, high=1e-2),
        tried=(BandReading(bands=chosen.bands, candidates=2, steps=90, loss=0.4),),
        full_steps=270,
        winner=Winner(
            candidate=chosen,
            role=Role.SEARCHED if wins else Role.FULL_DEPTH,
            trainable_parameters=100 * len(chosen.layers),
            choice=Choice.BEATS_BASELINE if wins else Choice.BASELINE,
            reason="made up",
            baseline=full,
            baseline_parameters=100 * layers,
            finalists=finalists,
        ),
        gain=Interval(mean=-0.02, low=-0.03, high=-0.01) if wins else None,
        versions={"bandsearch": "0.1"},
    )
