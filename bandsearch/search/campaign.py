"""A campaign: all decisions of one search, with nothing in it that runs anything.

Whoever drives it asks for a proposal, trains it rung by rung, and lets it judge every reading:

    proposal = campaign.propose()  # None once the space has nothing new
    while (verdict := campaign.observe(proposal.number, point)).goes_on: ...
    result = campaign.finish(proposal.number)

Ray Tune drives it over engines (`search`); a table of finished trainings can drive it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from bandsearch.search.baselines import openings, role_of
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.halving import Halving
from bandsearch.search.proposal import Proposal
from bandsearch.search.proposer import Sampler, propose_params
from bandsearch.search.strata import stratum
from bandsearch.values.atlas import Suggestion
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.spec import Objective
from bandsearch.values.trial import Point, TrialResult, TrialState
from bandsearch.values.value import Value

# Candidates drawn at random before the sampler's model is trusted: at least four, or a sixth of the search.
SMALLEST_STARTUP = 4
STARTUP_SHARE = 6


class Standing(Value):
    """How a training stands after a reading: running, complete, or stopped for a reason in words."""

    state: TrialState
    reason: str = ""

    @property
    def goes_on(self) -> bool:
        return self.state is TrialState.RUNNING


class Campaign:
    """Not thread-safe. Proposals depend on the seed, the number and the results finished so far, and nothing else."""

    def __init__(
        self,
        code: CandidateCode,
        profile: SensitivityProfile,
        *,
        rungs: tuple[int, ...],
        eta: int,
        seed: int,
        expected: int,
        parameters: Callable[[Candidate], int],
        sampler: Sampler = Sampler.TPE,
        objective: Objective = Objective.LOSS,
        past: Iterable[TrialResult] = (),
        prior: Sequence[Suggestion] = (),
    ) -> None:
        """`expected`: candidates the search hopes to try; it sizes what comes before the sampler. `past`: results of
        earlier processes. `prior`: what earlier runs recommend; it must be the same in every process of a search.
        `parameters` counts what a candidate trains."""
        self._code, self._seed, self._parameters = code, seed, parameters
        self._sampler, self._objective = Sampler(sampler), objective
        self._halving = Halving(rungs, eta)
        # Those that are not finished: of another plan of this run some may be.
        self._openings = list(openings(code, profile, seed, expected, prior))
        self._startup = len(self._openings) + max(SMALLEST_STARTUP, expected // STARTUP_SHARE)
        self._running: dict[int, tuple[Proposal, list[Point], Standing]] = {}
        self._results: dict[int, TrialResult] = {}
        self.is_exhausted = False
        for result in past:
            self._end(result)
            self._halving.remember(self._stratum(result.candidate, result.role), result)

    @property
    def results(self) -> list[TrialResult]:
        """Finished trainings, by number."""
        return [self._results[number] for number in sorted(self._results)]

    @property
    def running(self) -> list[Proposal]:
        return [proposal for proposal, _, _ in self._running.values()]

    @property
    def proposed(self) -> int:
        """How many candidates have been proposed so far, by earlier processes too."""
        return len(self._results) + len(self._running)

    def propose(self) -> Proposal | None:
        """The next candidate, under the lowest number that is free. It runs until it is finished or dropped.

        None where nothing is left that differs from what was tried: then the search is at its end.
        """
        number = next(n for n in count() if n not in self._results and n not in self._running)
        under_way = {proposal.candidate for proposal in self.running}
        opening = next((each for each in self._openings if each.candidate not in under_way), None)
        if opening is not None:
            candidate, role, proposed_by = opening.candidate, opening.role, opening.proposed_by
        else:
            sampler = Sampler.RANDOM if number < self._startup else self._sampler
            params = propose_params(
                self._code,
                self.results,
                [proposal.candidate for proposal in self.running],
                seed=self._seed,
                number=number,
                sampler=sampler,
                objective=self._objective,
            )
            if params is None:
                self.is_exhausted = True
                return None
            candidate, proposed_by = self._code.decode(params), "sampler"
            role = role_of(self._code, candidate)
        proposal = Proposal(
            number=number,
            candidate=candidate,
            role=role,
            proposed_by=proposed_by,
            seed=self._seed,
            trainable_parameters=self._parameters(candidate),
        )
        self.adopt(proposal)
        return proposal

    def adopt(self, proposal: Proposal) -> None:
        """Let a proposal run that was made before, by a process that did not live to finish it."""
        self._running[proposal.number] = (proposal, [], Standing(state=TrialState.RUNNING))

    def observe(self, number: int, point: Point) -> Standing:
        """Judge a reading of a running candidate. The loss is finite; fewer steps than the rung mean time ran out."""
        proposal, points, _ = self._running[number]
        rung_index = len(points)
        if point.steps < self._halving.rungs[rung_index]:
            return self._settle(number, TrialState.PRUNED, f"the search's time was up after {point.steps} steps")
        points.append(point)
        verdict = self._halving.decide(self._stratum(proposal.candidate, proposal.role), rung_index, point.loss)
        if rung_index == len(self._halving.rungs) - 1:
            return self._settle(number, TrialState.COMPLETE)
        if not verdict.keep:
            return self._settle(number, TrialState.PRUNED, verdict.reason)
        return self._settle(number, TrialState.RUNNING)

    def stop(self, number: int, state: TrialState, reason: str) -> Standing:
        """End a running candidate for a reason outside the comparison: diverged, out of memory, out of time."""
        return self._settle(number, state, reason)

    def finish(self, number: int) -> TrialResult | None:
        """The result of a candidate that has come to its end; None, and forgotten, if it was broken off before."""
        proposal, points, standing = self._running.pop(number)
        if standing.goes_on:
            return None
        result = proposal.result(standing.state, points, standing.reason)
        self._end(result)
        return result

    def _end(self, result: TrialResult) -> None:
        self._results[result.number] = result
        self._openings = [each for each in self._openings if each.candidate != result.candidate]

    def _settle(self, number: int, state: TrialState, reason: str = "") -> Standing:
        proposal, points, _ = self._running[number]
        standing = Standing(state=state, reason=reason)
        self._running[number] = (proposal, points, standing)
        return standing

    def _stratum(self, candidate: Candidate, role: Role) -> str:
        return stratum(candidate, role, self._code.layer_count)
