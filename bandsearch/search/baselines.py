"""What is tried first: tuned baselines, without which no gain is provable, what earlier runs recommend, and the probe's
proposals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain, zip_longest

from bandsearch.search.candidates import CandidateCode, split_targets
from bandsearch.search.prior import most_suggestions
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role, rates_differ
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.value import Value

FULL_DEPTH_RATES = 4
OTHER_RATES = 3
THIN_RATES = 2


class Opening(Value):
    """A candidate that is tried whatever the results so far say; `reason` in words where it has one of its own."""

    candidate: Candidate
    role: Role
    proposed_by: str
    reason: str = ""


def openings(
    code: CandidateCode,
    profile: SensitivityProfile,
    seed: int,
    expected: int,
    prior: Sequence[Suggestion] = (),
) -> tuple[Opening, ...]:
    """The first candidates of a search that expects about `expected` of them, the most needed first.

    Full depth, the 20-80 % block, the last k layers and a random band (all three of equal width, all on every linear
    module at the middle rank), each at several learning rates: comparing bands at one rate compares rates, not bands.
    They take a third of the search, but at least one rate each, two for full depth. Full depth at the lowest rank and
    the probe's bands take up to a quarter, with the first and last layers together where the space splits bands. What
    `prior` suggests comes after the first, in addition to all these and never more than `most_suggestions`: where it
    misleads it costs those few.
    """
    kinds = _baseline_bands(code.layer_count, seed)
    rates = tuned_rates(code, profile.rate_range.best)
    full, *partial = (
        [
            Opening(candidate=habit(code, band, rate), role=role, proposed_by="baseline")
            for rate in rates[: FULL_DEPTH_RATES if role is Role.FULL_DEPTH else OTHER_RATES]
        ]
        for role, band in kinds.items()
    )
    # Full depth is what everything is compared with, so its second rate comes before the others' first.
    rounds = chain(full[:2], *zip_longest(*partial, full[2:]))
    baselines = [opening for opening in rounds if opening is not None][: max(len(kinds) + 1, expected // 3)]
    recommended = [
        Opening(candidate=each.candidate, role=role_of(code, each.candidate), proposed_by="atlas", reason=each.reason)
        for each in prior
    ]
    recommended = _new(code, recommended, baselines)[: most_suggestions(expected)]
    proposals = [
        Opening(
            candidate=_probed(code, proposal.band, rates[0]),
            role=Role.SEARCHED,
            proposed_by="probe",
            reason=proposal.reason,
        )
        for proposal in profile.proposals
    ]
    if code.splits:
        proposals[1:1] = _ends(code, rates[:OTHER_RATES])
    proposals[:0] = _thin(code, rates[:THIN_RATES])
    proposals = _new(code, proposals, [*baselines, *recommended])
    in_turn = chain.from_iterable(zip_longest(baselines, proposals[: max(1, expected // 4)]))
    first, *others = [opening for opening in in_turn if opening is not None]
    return (first, *recommended, *others)


def _new(code: CandidateCode, proposed: Sequence[Opening], known: Sequence[Opening]) -> list[Opening]:
    """Those in the space that resemble neither what is known nor one before them."""
    taken = list(known)
    for opening in proposed:
        is_known = any(opening.candidate.resembles(other.candidate) for other in taken)
        if not is_known and code.encode(opening.candidate) is not None:
            taken.append(opening)
    return taken[len(known) :]


def tuned_rates(code: CandidateCode, best: float) -> tuple[float, ...]:
    """Rates of a tuned baseline, the most promising first: the `best` that is known, half way to the ends, the ends; of
    two the lower one. A rate that looks best after a few steps is rarely too low for many, and one that is too high
    breaks off. Rates that are nearly one are one."""
    low, high = code.rates
    best = min(max(best, low), high)
    found: list[float] = []
    for exact in (best, math.sqrt(best * low), math.sqrt(best * high), low, high):
        rate = min(max(float(f"{exact:.4g}"), low), high)
        if all(rates_differ(rate, other) for other in found):
            found.append(rate)
    return tuple(found)


def habit(code: CandidateCode, band: Band, rate: float) -> Candidate:
    """What everybody does, on `band`: every linear module, the middle rank, plain LoRA."""
    rank = code.ranks[len(code.ranks) // 2]
    alpha = code.space.alpha_at(rank)
    return Candidate(bands=(band,), rank=rank, alpha=alpha, targets=code.everything, learning_rate=rate)


def role_of(code: CandidateCode, candidate: Candidate) -> Role:
    """Whoever proposes it, full depth as everybody does it is the baseline at one more rate: it would otherwise be
    declared to beat itself."""
    baseline = habit(code, Band.full(code.layer_count), candidate.learning_rate)
    return Role.FULL_DEPTH if candidate == baseline else Role.SEARCHED


def _thin(code: CandidateCode, rates: Sequence[float]) -> list[Opening]:
    """Full depth at the lowest rank, where that is at most half of the habit's."""
    rank = min(code.ranks)
    full = [_probed(code, Band.full(code.layer_count), rate) for rate in rates]
    if 2 * rank > full[0].rank:
        return []
    alpha = code.space.alpha_at(rank)
    candidates = [each.model_copy(update={"rank": rank, "alpha": alpha}) for each in full]
    return [Opening(candidate=candidate, role=Role.SEARCHED, proposed_by="low rank") for candidate in candidates]


def _ends(code: CandidateCode, rates: Sequence[float]) -> list[Opening]:
    """The first and the last layers together, a third of the depth, a quarter of it the first, at every rate.

    On the embedded model such a pair learned two tasks of three far better than any run of as many neighbours.
    """
    count, snap = code.layer_count, code.snap
    first, last = (max(1, round(share * count / 12 / snap)) * snap for share in (1, 3))
    begin = (count - last) // snap * snap
    if first >= begin:
        return []
    bands = (Band(start=0, stop=first), Band(start=begin, stop=count))
    candidates = [_probed(code, Band.full(count), rate).model_copy(update={"bands": bands}) for rate in rates]
    return [Opening(candidate=candidate, role=Role.SEARCHED, proposed_by="ends") for candidate in candidates]


def _probed(code: CandidateCode, band: Band, rate: float) -> Candidate:
    """A probe's band, otherwise as the space has it: its widest targets, its first method and initialisation."""
    targets = code.called(("all",)) or split_targets(code.targets[0])
    return habit(code, band, rate).model_copy(
        update={"targets": targets, "method": code.space.methods[0], "init": code.space.inits[0]}
    )


def _baseline_bands(layer_count: int, seed: int) -> dict[Role, Band]:
    """The baselines' bands; on a decoder too small for them to differ, only the different ones."""
    middle = Band.middle(layer_count)
    last = Band.last(middle.width, layer_count)
    starts = [start for start in range(layer_count - middle.width + 1) if start not in (middle.start, last.start)]
    bands = {Role.FULL_DEPTH: Band.full(layer_count), Role.MID_BLOCK: middle, Role.LAST_K: last}
    if starts:
        start = random.Random(f"random band {seed}").choice(starts)
        bands[Role.RANDOM_BAND] = Band(start=start, stop=start + middle.width)
    return {role: band for role, band in bands.items() if role is Role.FULL_DEPTH or band.width < layer_count}
