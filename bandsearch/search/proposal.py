"""A proposal: a candidate with its number, before it is trained."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.trial import Point, TrialResult, TrialStage, TrialState
from bandsearch.values.value import Value


class Proposal(Value):
    """`number` counts from 0 in the order of proposing and stays with the candidate through kill and resume."""

    number: int
    candidate: Candidate
    role: Role
    proposed_by: str
    seed: int
    trainable_parameters: int

    @classmethod
    def of(cls, result: TrialResult) -> Proposal:
        """The proposal that `result` came from."""
        return cls(**{name: getattr(result, name) for name in cls.model_fields})

    def result(
        self,
        state: TrialState,
        points: Sequence[Point],
        reason: str = "",
        *,
        stage: TrialStage = TrialStage.SEARCH,
        divergence: float | None = None,
    ) -> TrialResult:
        return TrialResult(
            number=self.number,
            candidate=self.candidate,
            role=self.role,
            seed=self.seed,
            state=state,
            points=tuple(points),
            trainable_parameters=self.trainable_parameters,
            proposed_by=self.proposed_by,
            stage=stage,
            reason=reason,
            divergence=divergence,
        )
