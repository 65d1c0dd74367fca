"""The rest of a budget: a run is given more of it, refused where it is too little, and never outlasts it."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from costs import costs_of
from hypothesis import given
from hypothesis import strategies as st

from bandsearch.engine.failures import LostEngineError, OverrunError
from bandsearch.run import main, rest, stages, underway
from bandsearch.run.engines import WORTH_AGAIN
from bandsearch.run.planning import SMALLEST_FULL_STEPS, make_plan
from bandsearch.run.rest import enlarged
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.budget import Budget, Unit
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.environment import Environment
from bandsearch.values.errors import BudgetError, InterruptedRunError
from bandsearch.values.plan import Plan
from bandsearch.values.source import Source
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec, TrainSpec
from bandsearch.values.trial import TrialResult, TrialStage, TrialState

WALL = 600.0
SPEC = RunSpec(
    model=ModelSpec(name="demo"),
    data=DataSpec(name="demo:swap"),
    space=SearchSpace(name="quick"),
    budget=Budget(seconds=WALL, unit=Unit.WALL),
    train=TrainSpec(epochs=20),
)
COSTS = costs_of(
    0.2,
    seconds_per_validation=0.5,
    seconds_per_test_loss=0.01,
    seconds_per_generation=0.02,
    load_seconds=10,
    peak_memory_bytes=10**9,
)
SIZES = {"train_examples": 2000, "validation_examples": 250, "test_examples": 250, "adapter_bytes": 10**6}
PLAN = make_plan(SPEC, COSTS, **SIZES, engines=2, wall_seconds=WALL)


class Pool:
    """Loads at once; the first work it is given never ends, unless the engines are taken away."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    size = 2

    @contextmanager
    def abandoned_once(self, *_: Any) -> Iterator[None]:
        yield

    def pack(self, candidates: int) -> None:
        pass

    def apply(self, *_: Any) -> Any:
        assert self.taken.wait(60)
        raise LostEngineError("An engine died (killed).", "Look for a kill.")

    def abandon(self) -> None:
        self.taken.set()

    def stop(self) -> None:
        pass


def begun(path: Path, monkeypatch: pytest.MonkeyPatch, spent: float, spec: RunSpec = SPEC) -> tuple[RunDirectory, Pool]:
    """A run with a plan that has spent so many wall seconds, and the engines that it will be given."""
    home, pool = RunDirectory.create(path, spec), Pool()
    home.write(home.plan, PLAN)
    line = {"time": 0.0, "stage": "search", "stage_seconds": spent, "spent": spent, "devices": 1}
    home.ledger.write_text(json.dumps(line) + "\n")

    def job(spec: RunSpec, **_: Any) -> Any:
        seconds = spec.budget.seconds if spec.budget else None
        counts = {split: range(SIZES[f"{split}_examples"]) for split in ("train", "validation", "test")}
        return SimpleNamespace(
            spec=spec,
            dataset=SimpleNamespace(notes=(), **counts),
            retention=SimpleNamespace(texts=()),
            adapter_bytes=SIZES["adapter_bytes"],
            devices=1,
            budget_seconds=seconds,
            wall_seconds=seconds,
        )

    monkeypatch.setattr(main, "prepare_job", job)
    monkeypatch.setattr(underway, "keep", lambda dataset, path: None)
    source = Source(location="org/base", is_local=False, slug="base")
    monkeypatch.setattr(underway, "environment", lambda job: Environment(facts={}, source=source))
    monkeypatch.setattr(underway, "start_engines", lambda *_: pool)
    return home, pool


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_patience", lambda wall_seconds, wall_left, finishing: 0.1)


def test_an_engine_that_hangs_ends_with_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, 10.0)
    at_once(monkeypatch)
    with pytest.raises(OverrunError, match=r"budget is used up .*nvidia-smi.*bandsearch resume") as found:
        main.resume(home.path)
    # Whoever starts again what can be resumed is not to do so for ever.
    assert found.value.exit_code == BudgetError.exit_code
    with pytest.raises(InterruptedRunError):
        main.resume(home.path, stop=lambda: True)


def test_an_engine_lost_before_is_said_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, pool = begun(tmp_path / "run", monkeypatch, 10.0)
    pool.abandon()
    with pytest.raises(LostEngineError, match="An engine died"):
        main.resume(home.path)


@given(wall=st.floats(60.0, 1e6), spent=st.floats(0.0, 1.1), finishing=st.floats(0.0, 1e5))
def test_nothing_that_is_planned_outlasts_its_patience(wall: float, spent: float, finishing: float) -> None:
    left = (1 - spent) * wall
    grace = max(60.0, 0.02 * wall)
    # A run that was spent before its end is finished.
    assert rest._patience(wall, left, finishing) == pytest.approx(max(left, finishing) + grace)


@pytest.mark.parametrize("has_adapter", [False, True])
def test_of_a_spent_run_only_what_is_left_to_do_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_adapter: bool
) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, WALL)
    if has_adapter:
        home.adapter.mkdir()
    stages = ("evaluate",) if has_adapter else ("retrain", "evaluate")
    assert underway._unfinished(home, PLAN) == sum(map(PLAN.seconds_of, stages))


def named_by(error: BudgetError) -> str:
    found = re.search(r"--budget (\S+)`", error.remedy)
    assert found
    return found[1]


@pytest.mark.parametrize("left", [-5.0, 1.0, 15.0])
def test_what_does_not_pay_for_an_adapter_is_refused_with_a_budget_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    home, pool = begun(tmp_path / "run", monkeypatch, WALL - left)
    before = home.ledger.read_bytes()
    with pytest.raises(BudgetError, match="of its budget left; the smallest final training") as refused:
        main.resume(home.path)
    assert home.ledger.read_bytes() == before
    at_once(monkeypatch)
    with pytest.raises(LostEngineError):
        main.resume(home.path, budget=named_by(refused.value))
    assert pool.taken.is_set()
    # It stays, and pays for what the plan still has.
    budget = home.read_spec().budget
    assert budget is not None
    assert budget.seconds - WALL + left >= sum(map(PLAN.seconds_of, ("load", "confirm", "retrain", "evaluate")))
    with pytest.raises(LostEngineError):
        main.resume(home.path)


def test_a_run_that_has_an_adapter_is_finished_though_it_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, WALL)
    (home.full / "one").mkdir(parents=True)
    (home.full / "one" / "best.safetensors").touch()
    at_once(monkeypatch)
    with pytest.raises(LostEngineError, match="used up"):
        main.resume(home.path)


def test_the_least_is_what_is_planned_for_the_least_steps() -> None:
    short = PLAN.model_copy(update={"full_steps": SMALLEST_FULL_STEPS - 15})
    assert rest.least_rest(short) < rest.least_rest(PLAN)
    assert rest.least_rest(PLAN) < sum(map(PLAN.seconds_of, ("load", "retrain", "evaluate")))


@pytest.mark.parametrize(
    ("given", "budget", "words"),
    [
        ("10min", "5min", "10min, and 5min is not more"),
        ("10min", "1gpu-h", "10min, and 1gpu-h is not more"),
        ("1gpu-h", "2h", "1gpu-h, and 2h is not more"),
        (None, "2h", "bounded by its number of candidates"),
        ("10min", "more", "not understood"),
    ],
)
def test_a_budget_that_is_no_more_is_refused_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, budget: str, words: str
) -> None:
    spec = SPEC.model_copy(update={"budget": Budget.parse(given) if given else None, "trials": 9})
    home, _ = begun(tmp_path / "run", monkeypatch, 1.0, spec)
    before = home.spec_file.read_bytes()
    with pytest.raises(BudgetError, match=words):
        main.resume(home.path, budget=budget)
    assert home.spec_file.read_bytes() == before


def test_a_complete_run_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, 1.0)
    home.evaluation.write_text("{}")
    before = home.spec_file.read_bytes()
    with pytest.raises(BudgetError, match="is complete"):
        main.resume(home.path, budget="20min")
    assert home.spec_file.read_bytes() == before


@given(st.sampled_from(Unit), st.floats(1.0, 1e7), st.floats(1.0, 1e7))
def test_only_the_budget_grows(unit: Unit, before: float, after: float) -> None:
    spec = SPEC.model_copy(update={"budget": Budget(seconds=round(before), unit=unit)})
    budget = Budget(seconds=round(after), unit=unit)
    if budget.seconds >= round(before):
        assert enlarged(spec, str(budget)) == spec.model_copy(update={"budget": budget})
    else:
        with pytest.raises(BudgetError):
            enlarged(spec, str(budget))


def test_what_is_given_more_is_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final training gets longer as in a plan of that budget; candidates go on to be read where they were."""
    home, _ = begun(tmp_path / "run", monkeypatch, 500.0)
    seen: list[tuple[float, float, Plan]] = []

    def profile(at: Any) -> Plan:
        seen.append((at.wall_left("confirm", "retrain", "evaluate")(), at.ledger.limit, at.plan))
        raise LostEngineError("An engine died.")

    monkeypatch.setattr(stages, "probe", profile)
    for budget in ("10min", "30min", "30min"):
        with pytest.raises(LostEngineError):
            main.resume(home.path, budget=budget)
    assert [limit for _, limit, _ in seen] == [600.0, 1800.0, 1800.0]
    as_begun, larger, again = (plan for _, _, plan in seen)
    fresh = make_plan(SPEC, COSTS, **SIZES, engines=2, wall_seconds=1800.0)
    assert as_begun == PLAN
    assert larger == again
    assert larger.rungs == PLAN.rungs
    assert larger.full_steps == fresh.full_steps > PLAN.full_steps
    assert larger.confirm_steps == fresh.confirm_steps > PLAN.confirm_steps
    assert 0 < seen[1][0] - seen[0][0] < 1200.0


@pytest.mark.parametrize("budget", ["12min", "60min"])
def test_while_finalists_are_trained_their_length_stays_until_twice_as_long_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, 500.0)
    for stage, role in itertools.product(TrialStage, (Role.FULL_DEPTH, Role.SEARCHED)):
        Records(home.trials).append(
            TrialResult(
                number=0,
                candidate=Candidate.full_depth(12, rank=16, alpha=32, learning_rate=1e-3),
                role=role,
                seed=1,
                state=TrialState.COMPLETE,
                trainable_parameters=1,
                proposed_by="baseline",
                stage=stage,
            )
        )
    monkeypatch.setattr(stages, "probe", lambda at: (_ for _ in ()).throw(LostEngineError("An engine died.")))
    with pytest.raises(LostEngineError):
        main.resume(home.path, budget=budget)
    larger = home.read(home.plan, Plan)
    assert larger is not None
    fresh = make_plan(SPEC, COSTS, **SIZES, engines=2, wall_seconds=Budget.parse(budget).seconds, known=PLAN)
    assert larger.full_steps == fresh.full_steps > PLAN.full_steps
    assert PLAN.confirm_steps < fresh.confirm_steps
    stays = fresh.confirm_steps < WORTH_AGAIN * PLAN.confirm_steps
    assert stays == (budget == "12min")
    assert larger.confirm_steps == (PLAN if stays else fresh).confirm_steps
    assert sum(stage.seconds for stage in larger.stages) <= Budget.parse(budget).seconds + 1e-6
    assert f"{larger.confirm_steps} steps" in next(stage.detail for stage in larger.stages if stage.name == "confirm")


def test_once_there_is_a_winner_the_plan_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, 500.0)
    home.winner.write_text("{}")
    monkeypatch.setattr(stages, "probe", lambda at: (_ for _ in ()).throw(LostEngineError(str(at.plan.full_steps))))
    with pytest.raises(LostEngineError, match=str(PLAN.full_steps)):
        main.resume(home.path, budget="30min")


@pytest.mark.parametrize(
    ("budget", "finalists", "trainings", "spent", "begins_again"),
    [
        ("10min", 6, 2, 100.0, False),
        ("60min", 6, 2, 100.0, True),
        ("60min", 0, 2, 100.0, False),
        ("60min", 0, 1, 100.0, True),
        ("60min", 6, 2, 3000.0, False),
    ],
)
def test_a_run_that_compared_nothing_begins_to_once_enough_is_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: str,
    finalists: int,
    trainings: int,
    spent: float,
    begins_again: bool,
) -> None:
    """Rates of full depth that are being trained are no end of it then; otherwise they go on."""
    home, _ = begun(tmp_path / "run", monkeypatch, spent)
    alone = PLAN.model_copy(update={"finalists": 0, "final_trainings": trainings})
    home.write(home.plan, alone)
    home.winner.write_text("{}")
    checkpoint = home.full / "rate" / "last.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    larger = make_plan(SPEC, COSTS, **SIZES, engines=2, wall_seconds=3600.0)
    larger = larger.model_copy(update={"finalists": finalists})
    monkeypatch.setattr(underway, "larger_plan", lambda *_, **__: larger)
    monkeypatch.setattr(stages, "probe", lambda at: (_ for _ in ()).throw(LostEngineError("An engine died.")))
    with pytest.raises(LostEngineError):
        main.resume(home.path, budget=budget)
    assert home.read(home.plan, Plan) == (larger if begins_again else alone)
    assert (home.winner.exists(), checkpoint.exists()) == (not begins_again, not begins_again)


def test_where_nothing_was_compared_a_larger_plan_has_rungs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = begun(tmp_path / "run", monkeypatch, 100.0)
    home.write(home.plan, PLAN.model_copy(update={"finalists": 0, "rungs": (1,)}))
    monkeypatch.setattr(stages, "probe", lambda at: (_ for _ in ()).throw(LostEngineError("An engine died.")))
    with pytest.raises(LostEngineError):
        main.resume(home.path, budget="60min")
    larger = home.read(home.plan, Plan)
    assert larger is not None
    assert larger.rungs == make_plan(SPEC, COSTS, **SIZES, engines=2, wall_seconds=3600.0).rungs
