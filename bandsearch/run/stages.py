"""The stages of a run under way: each goes on from what an earlier session left of it, and charges its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bandsearch.engine.team import form_teams
from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.run.evaluating import spare_evaluation
from bandsearch.run.handover import evaluate_arms, export_winner, settle
from bandsearch.run.planning import final_steps, settling_seconds
from bandsearch.run.prior import prior_of
from bandsearch.run.retrain import Training
from bandsearch.run.retrain import retrain as train_arms
from bandsearch.run.underway import Underway
from bandsearch.run.words import agreed
from bandsearch.rundir import Records
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.confirm import confirm as confirm_finalists
from bandsearch.search.correlation import signals
from bandsearch.search.evidence import Aim
from bandsearch.search.rates import full_depth_alone
from bandsearch.search.search import run_search, searched
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Arm, Winner
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Update
from bandsearch.values.trial import TrialResult

# What is being scored is waited for so long once the person has asked to stop, seconds; lm-eval's tasks take longer.
PART_PATIENCE = 5.0


def probe(at: Underway) -> SensitivityProfile:
    profile = _profile(at)
    at.heed()
    return profile


def _profile(at: Underway) -> SensitivityProfile:
    with at.ledger.stage("probe"):
        known = at.home.read(at.home.profile, SensitivityProfile)
        if known is not None:
            return known
        at.listen(Update(stage="probe", message="gradients, learning-rate range, short full-depth run"))
        settings = ProbeSettings(
            seed=at.job.spec.seed,
            batch_size=at.plan.batch_size,
            space=at.job.spec.space,
            costs=at.plan.costs,
            deadline=at.plan.seconds_of("probe") if at.plan.wall_seconds is not None else None,
        )
        with at.pool.abandoned_once(at.stop):
            profile = at.pool.apply(0, run_probe, settings)
        at.home.write(at.home.profile, profile)
        return profile


def search(at: Underway, profile: SensitivityProfile) -> list[TrialResult]:
    """Nothing where the plan compares nothing: the final training tells one rate of full depth from another."""
    if not at.plan.compares:
        return []
    records = Records(at.home.trials)
    with at.ledger.stage("search"):
        # Once finalists have been trained the search is over, whatever time there is now.
        results = searched(records) or run_search(
            at.pool.handles,
            space=at.job.spec.space,
            layout=at.job.summary.layout,
            profile=profile,
            plan=at.plan,
            seed=at.job.spec.seed,
            records=records,
            study_path=at.home.study,
            scratch=at.home.scratch,
            wall_left=at.wall_left("confirm", "retrain", "evaluate"),
            objective=at.job.spec.objective,
            prior=prior_of(at.home, at.job, profile, at.listen).suggestions,
            listen=at.listen,
            stop=at.stop,
        )
    at.heed()
    return results


def confirm(at: Underway, profile: SensitivityProfile, results: Sequence[TrialResult]) -> Winner:
    with at.ledger.stage("confirm"):
        winner = _confirmed(at, profile, results) if at.plan.compares else _uncompared(at, profile)
    # One that was asked to stop came to its winner without all of its finalists.
    at.heed()
    at.home.write(at.home.winner, winner)
    at.listen(Update(stage="confirm", message=winner.reason))
    for signal in signals(results, winner.finalists, profile, at.plan.rungs):
        at.listen(Update(stage="confirm", message=agreed(signal)))
    return winner


def _confirmed(at: Underway, profile: SensitivityProfile, results: Sequence[TrialResult]) -> Winner:
    return confirm_finalists(
        at.pool,
        results=results,
        layout=at.job.summary.layout,
        profile=profile,
        plan=at.plan,
        seed=at.job.spec.seed,
        records=Records(at.home.trials),
        wall_left=at.wall_left("retrain", "evaluate"),
        aim=Aim(at.job.spec.objective, at.job.spec.tolerance),
        retention=at.job.retention.texts[: at.plan.confirm_texts],
        listen=at.listen,
        stop=at.stop,
    )


def _uncompared(at: Underway, profile: SensitivityProfile) -> Winner:
    spec, layout = at.job.spec, at.job.summary.layout
    code = CandidateCode(spec.space, layout, profile.rate_range)
    prior = prior_of(at.home, at.job, profile, at.listen).suggestions
    return full_depth_alone(code, layout, profile, at.plan.final_trainings, spec.tolerance, prior)


def retrain(at: Underway, winner: Winner) -> Winner:
    """Train winner and baseline fully. If the baseline comes out ahead it is the winner, and written as such."""
    arms = {Arm.FULL_DEPTH: winner.baseline}
    if winner.candidate != winner.baseline:
        arms = {Arm.WINNER: winner.candidate, **arms}
    with at.ledger.stage("retrain"):
        left, spare = at.wall_left("evaluate"), spare_evaluation(at.plan, min(len(arms), at.plan.evaluated))

        def wall_left() -> float:
            return left() + spare

        steps = winner.training_steps
        if steps is None:
            steps = _steps(at, wall_left(), len(arms))
            # Kept, so that a training that was broken off goes on as it began.
            winner = winner.model_copy(update={"training_steps": steps})
            at.home.write(at.home.winner, winner)
        trainings = _trainings(at, arms, steps, wall_left)
        at.heed()
        # Of one that was found to be behind before the run was broken off it is known already.
        known = {each.candidate: each for each in winner.trainings}
        known |= {arms[arm]: training.came_of(arms[arm]) for arm, training in trainings.items()}
        winner = winner.model_copy(update={"trainings": tuple(known.values())})
        settled = settle(at.pool, at.home.full, winner, at.plan)
        if settled != winner:
            at.listen(Update(stage="retrain", message=settled.reason))
        at.home.write(at.home.winner, settled)
        return settled


def _steps(at: Underway, seconds: float, arms: int) -> int:
    """What `seconds` pay for, which may be more than was planned."""
    steps = final_steps(at.plan, seconds, arms)
    if steps > at.plan.full_steps:
        planned = f"{at.plan.full_steps} were planned, and what is left of the budget pays for more"
        at.listen(Update(stage="retrain", message=f"{steps} steps: {planned}"))
    return steps


def _trainings(
    at: Underway, arms: dict[Arm, Candidate], steps: int, wall_left: Callable[[], float]
) -> dict[Arm, Training]:
    """Of all arms side by side, on as many engines each as are measured to pay."""
    fidelity = at.plan.final_fidelity(steps, at.job.spec.seed)
    reading = settling_seconds(at.plan.costs, len(arms))
    teams = form_teams(at.pool, len(arms), at.plan.costs.step_on(at.plan.engines // len(arms)).engines)
    trainings = train_arms(teams, arms, fidelity, at.home.full, lambda: wall_left() - reading, at.listen, at.stop)
    for team in teams:
        team.part()
    return trainings


def export(at: Underway, winner: Winner) -> None:
    with at.ledger.stage("export"):
        export_winner(at.pool, at.home, at.job, winner)


def evaluate(at: Underway, winner: Winner) -> None:
    with at.ledger.stage("evaluate"), at.pool.abandoned_once(at.stop, PART_PATIENCE):
        evaluation = evaluate_arms(at.pool, at.home, at.job, at.plan, winner, at.wall_left(), at.listen, at.heed)
        at.home.write(at.home.evaluation, evaluation)
