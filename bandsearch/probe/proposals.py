"""Candidate bands from layer scores and from what parts of the short run are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bandsearch.values.band import Band
from bandsearch.values.profile import BandProposal

# Widths as shares of depth, in the order in which their bands are proposed.
WIDTHS = (0.6, 0.4, 0.8, 0.25)
MOST = 8
# Positions tried per width.
POSITIONS = 8


def widths(layer_count: int) -> tuple[int, ...]:
    """Widths in layers, below full depth, distinct, in the order of WIDTHS; (1,) for a single layer."""
    rounded = [max(1, round(share * layer_count)) for share in WIDTHS]
    return tuple(dict.fromkeys(width for width in rounded if width < max(layer_count, 2)))


def windows(layer_count: int, width: int) -> tuple[Band, ...]:
    """Bands of one width at up to POSITIONS evenly spaced places, the first and the last among them."""
    last = layer_count - width
    count = min(POSITIONS, last + 1)
    starts = dict.fromkeys(round(place * last / max(1, count - 1)) for place in range(count))
    return tuple(Band(start=start, stop=start + width) for start in starts)


def propose(scores: Sequence[float], kept: Mapping[Band, float]) -> tuple[BandProposal, ...]:
    """At most MOST distinct bands inside the model, the most promising first, each with its reasons in words.

    `scores` is one number per layer, summing to 1. `kept[band]` is the share of a short full-depth run's gain that is
    left with only the band's part of its adapter; it may be empty. Bands are compared at equal width only: a wider
    band always holds more.
    """
    reasons: dict[Band, list[str]] = {}
    for band, reason in _reasons(scores, kept):
        if band in reasons or len(reasons) < MOST:
            reasons.setdefault(band, []).append(reason)
    return tuple(
        BandProposal(band=band, score=mass(scores, band), reason=_sentence(parts)) for band, parts in reasons.items()
    )


def mass(scores: Sequence[float], band: Band) -> float:
    """The band's share of the sensitivity."""
    return sum(scores[layer] for layer in band.layers)


def _reasons(scores: Sequence[float], kept: Mapping[Band, float]) -> Iterator[tuple[Band, str]]:
    count = len(scores)
    for place, width in enumerate(widths(count)):
        layers = f"{width} layer{'s' * (width > 1)}"
        measured = {band: share for band, share in kept.items() if band.width == width}
        if len(measured) > 1:
            best, second = sorted(measured, key=lambda band: -measured[band])[:2]
            yield (
                best,
                f"alone it keeps {measured[best]:.0%} of the short run's gain, the most among bands of {layers} "
                f"(next: {second} with {measured[second]:.0%})",
            )
        every = [Band(start=start, stop=start + width) for start in range(count - width + 1)]
        densest = max(every, key=lambda band: (mass(scores, band), -band.start))
        yield (
            densest,
            f"holds {mass(scores, densest):.0%} of the sensitivity in {width / count:.0%} of the depth, the most among "
            f"bands of {layers}",
        )
        if place == 0:
            yield Band.middle(count), "the 20–80 % block, stable under fine-tuning in arXiv 2604.11838"
    half = _narrowest_half(scores)
    yield half, f"the narrowest band that holds half of the sensitivity ({mass(scores, half):.0%})"


def _narrowest_half(scores: Sequence[float]) -> Band:
    """The narrowest band with half of the mass; of equally narrow ones the heaviest, then the lowest."""
    sums = [0.0]
    for score in scores:
        sums.append(sums[-1] + score)
    halves = [
        Band(start=start, stop=stop)
        for start in range(len(scores))
        for stop in range(start + 1, len(scores) + 1)
        if sums[stop] - sums[start] >= 0.5 * sums[-1] - 1e-9
    ]
    return min(halves, key=lambda band: (band.width, -mass(scores, band), band.start))


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
