"""A sensitivity profile in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bandsearch.probe.scores import coherence_by_layer
from bandsearch.values.profile import LayerViews, RateRange, SensitivityProfile

BAR = 12
FULL, HALF = "█", "▌"


def draw(profile: SensitivityProfile) -> RenderableType:
    """Everything the probe found, for `console.print`: fits 80 columns, and is plain text where nothing is drawn."""
    return Group(
        Text(f"{profile.layer_count} layers of {profile.model}, probed in {profile.seconds:.0f} s", style="bold"),
        _layers(profile),
        Text(
            "sensitivity: share of the score. gradient: how far the examples' gradients agree, 0 to 1. CKA, ΔW/W and "
            "the arrows: base model against a short full-depth run.",
            "dim",
        ),
        Text.assemble(("\nlayers, most sensitive first  ", "bold"), " ".join(map(str, profile.ranking))),
        Text.assemble(("learning rates worth searching  ", "bold"), _rates(profile.rate_range)),
        Text("\nbands to try first", style="bold"),
        _proposals(profile),
    )


def bar(share: float, largest: float, width: int = BAR) -> str:
    """`share` drawn so that `largest` fills `width` characters, to half a character; empty only for nothing."""
    if share <= 0 or largest <= 0:
        return ""
    halves = max(1, round(2 * width * min(1.0, share / largest)))
    return FULL * (halves // 2) + HALF * (halves % 2)


def _layers(profile: SensitivityProfile) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("sensitivity", min_width=BAR, no_wrap=True)
    for name in ("", "gradient", "CKA", "ΔW/W", "entropy", "curvature"):
        table.add_column(name, justify="right", no_wrap=True)
    views = {view.layer: view for view in profile.views}
    largest = max(profile.layer_scores)
    normalised = coherence_by_layer(profile.modules, profile.layer_count)
    for layer, (score, coherence) in enumerate(zip(profile.layer_scores, normalised, strict=True)):
        table.add_row(
            str(layer),
            Text(bar(score, largest), "cyan"),
            f"{score:.1%}",
            f"{coherence:.2f}",
            *_columns(views.get(layer)),
        )
    return table


def _columns(view: LayerViews | None) -> tuple[str, ...]:
    if view is None:
        return ("–",) * 4
    return (
        f"{view.cka:.3f}",
        f"{view.relative_change:.1%}",
        f"{view.entropy_base:.2f}→{view.entropy_tuned:.2f}",
        f"{view.curvature_base:.2f}→{view.curvature_tuned:.2f}",
    )


def _rates(rates: RateRange) -> str:
    return f"{rates.low:.1e} to {rates.high:.1e}, best {rates.best:.1e}"


def _proposals(profile: SensitivityProfile) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for proposal in profile.proposals:
        table.add_row(str(proposal.band), f"{proposal.score:.0%}", Text(proposal.reason))
    return table
