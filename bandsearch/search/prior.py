"""What earlier runs recommend for this search: pure, so that it can be replayed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bandsearch.search.candidates import CandidateCode, split_targets
from bandsearch.values.atlas import AtlasRecord, Prior, Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.layout import Layout

# However much is known, so few openings are given to it: a prior that misleads costs no more than them.
MOST = 3
# One suggestion in so many expected candidates.
SHARE = 8


def most_suggestions(expected: int) -> int:
    """How many openings of a search that expects `expected` candidates go to what is known already."""
    return max(1, min(MOST, expected // SHARE))


def prior_from(
    records: Sequence[AtlasRecord],
    code: CandidateCode,
    *,
    fingerprint: str,
    layout: Layout,
    data_fingerprint: str,
    rate: float,
) -> Prior:
    """At most MOST candidates of `code`'s space that earlier runs on this model, or on siblings, recommend, and behind
    them full depth at the rate that was the best for it in the first run that compared any.

    Runs on the very model come first (on the same data before others), then those on decoders of its family, the most
    alike in depth and width first; of equals the one that stands first in `records`. Each recommends what won it at
    the same relative depth, with its rank, targets and learning rate brought into the space; what does not fit there
    is left out. The last place goes to the first of these at `rate`, which the probe found on this data: the best rate
    depends on the data, and where a band is good need not.
    """
    known = sorted(
        (record for record in records if record.fingerprint == fingerprint or record.layout.family == layout.family),
        key=lambda record: _distance(record, fingerprint, layout, data_fingerprint),
    )
    found: list[Suggestion] = []
    for suggestion in _recommended(known, code, fingerprint):
        found = _with(found, suggestion)
        if len(found) == MOST - 1:
            break
    for first in found[:1]:
        low, high = code.rates
        here = first.candidate.model_copy(update={"learning_rate": min(max(rate, low), high)})
        reason = f"{first.reason} Here at the rate that the probe found."
        found = _with(found, Suggestion(candidate=here, reason=reason))
    for record in known:
        baseline = None if record.tuned_baseline is None else fitted(record.tuned_baseline, record.layer_count, code)
        if baseline is not None:
            reason = (
                f"{_on(record, fingerprint)} this was full depth's best rate on {record.data} ({record.date[:10]})."
            )
            found = _with(found, Suggestion(candidate=baseline, reason=reason))
            break
    return Prior(suggestions=tuple(found))


def _with(found: list[Suggestion], suggestion: Suggestion) -> list[Suggestion]:
    """Unless one is there that it resembles."""
    is_known = any(suggestion.candidate.resembles(other.candidate) for other in found)
    return found if is_known else [*found, suggestion]


def _distance(record: AtlasRecord, fingerprint: str, layout: Layout, data_fingerprint: str) -> tuple[int, float]:
    if record.fingerprint == fingerprint:
        return (0 if record.data_fingerprint == data_fingerprint else 1), 0.0
    depth = math.log(record.layer_count / layout.layer_count)
    width = math.log(record.layout.hidden_size / layout.hidden_size)
    return 2, abs(depth) + abs(width)


def _recommended(records: Sequence[AtlasRecord], code: CandidateCode, fingerprint: str) -> Iterator[Suggestion]:
    for record in records:
        best = record.recommended
        candidate = None if best is None else fitted(best.candidate, record.layer_count, code)
        if best is not None and candidate is not None:
            yield Suggestion(candidate=candidate, reason=_reason(record, best.candidate, fingerprint))


def fitted(candidate: Candidate, layers: int, code: CandidateCode) -> Candidate | None:
    """A candidate of a decoder of `layers` layers in the space of `code`, None where its bands have no place there.

    Ends of bands go to the nearest layer at the same relative depth that the space's steps allow, the rank to the
    nearest of the space by ratio, the rate to the nearest bound; targets, method and initialisation that the space does
    not offer become its first.
    """
    bands: list[Band] = []
    for band in candidate.bands:
        moved = _snapped(band.rescaled(layers, code.layer_count), code)
        if bands and moved.start <= bands[-1].stop:
            bands[-1] = Band(start=bands[-1].start, stop=max(bands[-1].stop, moved.stop))
        else:
            bands.append(moved)
    rank = min(code.ranks, key=lambda rank: abs(math.log(rank / candidate.rank)))
    low, high = code.rates
    space = code.space
    here = Candidate(
        bands=tuple(bands),
        rank=rank,
        alpha=space.alpha_at(rank),
        targets=code.called(candidate.targets) or split_targets(code.targets[0]),
        learning_rate=min(max(candidate.learning_rate, low), high),
        method=candidate.method if candidate.method in space.methods else space.methods[0],
        init=candidate.init if candidate.init in space.inits else space.inits[0],
    )
    return here if code.encode(here) is not None else None


def _snapped(band: Band, code: CandidateCode) -> Band:
    snap, count = code.snap, code.layer_count
    start = min((2 * band.start + snap) // (2 * snap) * snap, (count - 1) // snap * snap)
    stop = count if band.stop == count else (2 * band.stop + snap) // (2 * snap) * snap
    return Band(start=start, stop=min(count, max(start + snap, stop)))


def _reason(record: AtlasRecord, candidate: Candidate, fingerprint: str) -> str:
    layers = " and ".join(map(str, candidate.bands))
    where = f"layers {layers} of {record.layer_count}"
    if len(candidate.layers) == record.layer_count:
        where = f"all {record.layer_count} layers at rank {candidate.rank}"
    won = "won" if candidate == record.winner.candidate else "were the best beside full depth, which won,"
    moved = "" if record.fingerprint == fingerprint else "; here by relative depth"
    return f"{_on(record, fingerprint)} {where} {won} on {record.data} ({record.date[:10]}){moved}."


def _on(record: AtlasRecord, fingerprint: str) -> str:
    return "On this model" if record.fingerprint == fingerprint else f"On {record.model}, of the same family,"
