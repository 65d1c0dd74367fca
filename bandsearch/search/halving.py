"""Asynchronous successive halving within strata."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.values.trial import TrialResult
from bandsearch.values.value import Value


class Verdict(Value):
    """Whether a training goes on to the next rung, and if not, why, in words."""

    keep: bool
    reason: str = ""


class Halving:
    """Keeps the best `1/eta` of what has reached a rung so far, at least the best one (ASHA, arXiv 1810.05934).

    Losses are compared within a stratum only (see `strata`). As in ASHA nobody waits: the first to reach a rung
    passes, the second and third only if they are the best so far, and what was stopped stays stopped. For random
    orders this keeps about n/eta + 0.8 of n per stratum.
    """

    def __init__(self, rungs: Sequence[int], eta: int = 3) -> None:
        """`rungs` are steps, ascending; a training that reaches the last one is complete."""
        self.rungs = tuple(rungs)
        self.eta = eta
        self._seen: dict[tuple[str, int], list[float]] = {}

    def decide(self, stratum: str, rung_index: int, loss: float) -> Verdict:
        """Take note of a loss (finite) at a rung, and say whether to go on."""
        seen = self._seen.setdefault((stratum, rung_index), [])
        seen.append(loss)
        kept = max(1, len(seen) // self.eta)
        cut = sorted(seen)[kept - 1]
        if rung_index >= len(self.rungs) - 1 or loss <= cut:
            return Verdict(keep=True)
        return Verdict(
            keep=False,
            reason=(
                f"loss {loss:.4f} after {self.rungs[rung_index]} steps is not among the best {kept} of {len(seen)} "
                f"in {stratum.replace('_', ' ')} (cut {cut:.4f})"
            ),
        )

    def remember(self, stratum: str, result: TrialResult) -> None:
        """Take note of a training of an earlier process, in the order in which the records hold them."""
        for point in result.points:
            if point.steps in self.rungs:
                self._seen.setdefault((stratum, self.rungs.index(point.steps)), []).append(point.loss)
