"""Signals: how well what the probe stores about layers ranks bands, beside the trivial predictor, width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bandsearch.probe.scores import coherence_by_layer
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.value import Value
from benchmarks.bandbench.correlation import spearman, within
from benchmarks.bandbench.table import Table

TOP = 5


class BandSignal(Value):
    """A signal's sum over a band's layers against how low the band's best full loss is; 1 is perfect agreement.

    `regret`: of the best of its five first bands, above the best band, all and (`narrow_regret`) up to half of the
    depth, since a sum's five first are the widest. In nats per token.
    """

    signal: str
    overall: float | None
    within_width: float | None
    regret: float
    narrow_regret: float


def band_signals(table: Table) -> tuple[BandSignal, ...]:
    """The trivial predictor comes first. All signals share one probe, so they share its cost."""
    best: dict[tuple[int, int], float] = {}
    for index, option in enumerate(table.options):
        if option.seeds and option.entry.is_band:
            band = option.entry.bands[0]
            best[band] = min(best.get(band, float("inf")), float(table.full[index]))
    bands = list(best)
    widths = [stop - start for start, stop in bands]
    gains = [-best[band] for band in bands]
    narrow = [index for index, width in enumerate(widths) if 2 * width <= table.layer_count]
    found = []
    for name, layers in {"width": (1.0,) * table.layer_count, **layer_signals(table.profile)}.items():
        scores = [sum(layers[start:stop]) for start, stop in bands]
        found.append(
            BandSignal(
                signal=name,
                overall=spearman(scores, gains),
                within_width=within(scores, gains, widths),
                regret=_regret(scores, gains, range(len(bands))),
                narrow_regret=_regret(scores, gains, narrow),
            )
        )
    return tuple(found)


def layer_signals(profile: SensitivityProfile) -> Mapping[str, Sequence[float]]:
    """One number per layer for everything the profile holds; larger should mean: adapt this layer."""
    count = profile.layer_count
    raw = [sum(module.raw for module in profile.modules if module.layer == layer) for layer in range(count)]
    signals: dict[str, Sequence[float]] = {
        "probe's score": profile.layer_scores,
        "gradient, raw": raw,
        "gradient, normalised": coherence_by_layer(profile.modules, count),
    }
    views = sorted(profile.views, key=lambda view: view.layer)
    if len(views) == count:
        signals |= {
            "1 − CKA": [1 - view.cka for view in views],
            "CKA (stability)": [view.cka for view in views],
            "1 − cosine": [1 - view.cosine for view in views],
            "‖ΔW‖/‖W‖": [view.relative_change for view in views],
            "entropy, change": [abs(view.entropy_tuned - view.entropy_base) for view in views],
            "effective rank, change": [abs(view.effective_rank_tuned - view.effective_rank_base) for view in views],
            "curvature, change": [abs(view.curvature_tuned - view.curvature_base) for view in views],
        }
    return {name: values for name, values in signals.items() if any(values)}


def _regret(scores: Sequence[float], gains: Sequence[float], among: Sequence[int]) -> float:
    first = sorted(among, key=lambda index: -scores[index])[:TOP]
    return max(gains[index] for index in among) - max(gains[index] for index in first) if first else 0.0
