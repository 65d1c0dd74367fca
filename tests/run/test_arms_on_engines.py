"""Arms scored on any number of engines have the scores that one engine finds by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.data.retention import retention_texts
from bandsearch.engine.engine import Engine
from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.evaluate.arms import score_arm
from bandsearch.evaluate.lm_tasks import TaskScores
from bandsearch.evaluate.retention import retention_of
from bandsearch.models.aliases import Source, resolve
from bandsearch.run import arms
from bandsearch.rundir import RunDirectory
from bandsearch.search.clock import MARGIN
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import BandsearchError, InterruptedRunError
from bandsearch.values.evaluation import Arm, ArmScores
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.progress import silent
from bandsearch.values.spec import DataSpec, ModelSpec

FULL = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=1e-2)
CANDIDATES = {Arm.FULL_DEPTH: FULL, Arm.WINNER: FULL.model_copy(update={"bands": (Band(start=1, stop=3),)})}
# Of the test split's and the texts, each in one part or in several with a short one at the end.
TEST, GENERATED, TEXTS = 13, 11, 9


@pytest.fixture(scope="module")
def setup(
    tiny_model: Callable[[str], Path],
    kept_data: Callable[[Source, DataSpec], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> EngineSetup:
    data = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [{"prompt": "Count" + " on" * (n % 7) + f" from {n}:", "completion": f" {n + 1}"} for n in range(300)]
    data.write_text("\n".join(map(json.dumps, rows)))
    source = resolve(ModelSpec(name=str(tiny_model("qwen2"))))
    kept = kept_data(source, DataSpec(name=str(data), max_length=64))
    return EngineSetup(source=source, data=kept, dtype="float32", device="cpu", threads=1)


@pytest.fixture(scope="module")
def engine(setup: EngineSetup) -> Engine:
    return Engine.load(setup)


@pytest.fixture(scope="module")
def checkpoints(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[Arm, Path | None]:
    """The base, and two trained adapters."""
    folder, found = tmp_path_factory.mktemp("trained"), dict[Arm, Path | None]({Arm.BASE: None})
    for arm, candidate in CANDIDATES.items():
        session = engine.admit(candidate, Fidelity(steps=4, batch_size=4, seed=0))
        engine.advance(session, 4)
        found[arm] = folder / arm
        engine.checkpoint(session, folder / arm)
        engine.evict(session)
    return found


@pytest.fixture(scope="module")
def pool(setup: EngineSetup) -> Iterator[EnginePool]:
    pool = EnginePool.start([setup] * 3)
    yield pool
    pool.stop()


def job_of(engine: Engine, tasks: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        spec=SimpleNamespace(tasks=tasks),
        tokenizer=engine.tokenizer,
        dataset=engine.dataset,
        retention=retention_texts(None, engine.tokenizer, 64),
    )


def plan_of(test: int = TEST, generated: int = GENERATED, texts: int = TEXTS, lm_eval: float = 0.0) -> Any:
    """For three arms, a second each; `lm_eval` seconds for that."""
    each = ("seconds_per_test_loss", "seconds_per_generation", "seconds_per_retention")
    evaluate = 3 * (test + generated + texts) * MARGIN + lm_eval
    return SimpleNamespace(
        evaluated=2,
        test_examples=test,
        generated_examples=generated,
        retention_texts=texts,
        engines=1,
        costs=SimpleNamespace(**dict.fromkeys(each, 1.0)),
        seconds_of=lambda stage: evaluate,
    )


def home_at(path: Path) -> RunDirectory:
    (path / "scratch").mkdir(parents=True)
    return RunDirectory(path)


def alone(engine: Engine, plan: Any, checkpoints: dict[Arm, Path | None]) -> dict[Arm, ArmScores]:
    """All at a time on one engine."""
    texts, found = job_of(engine).retention.texts[: plan.retention_texts], {}
    for arm, checkpoint in checkpoints.items():
        session = engine.restore(checkpoint) if checkpoint else None
        counts = {"test_examples": plan.test_examples, "generated_examples": plan.generated_examples}
        scores = score_arm(engine, session, arm, **counts)
        found[arm] = scores.model_copy(update={"retention": retention_of(engine, session, texts)})
        engine.evict(session or "")
    return found


def numbers(scores: ArmScores) -> list[float]:
    assert scores.retention is not None
    losses = [example.loss for example in scores.examples]
    return [*losses, *scores.retention.losses, *scores.retention.divergences]


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("rows", [64, 4])
@pytest.mark.parametrize("counts", [(TEST, GENERATED, TEXTS), (2, 1, 1)])
def test_the_scores_are_those_of_one_engine_by_itself(
    pool: EnginePool,
    engine: Engine,
    checkpoints: dict[Arm, Path | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engines: int,
    rows: int,
    counts: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(arms, "EVALUATION_ROWS", rows)
    some, plan = EngineHandles(pool._actors[:engines]), plan_of(*counts)
    found = arms.Scoring(
        some, home_at(tmp_path), job_of(engine), plan, checkpoints, lambda: math.inf, silent, str
    ).scores()
    expected = alone(engine, plan, checkpoints)
    assert list(found) == list(expected)
    for arm, scores in expected.items():
        assert len(found[arm].examples) == counts[0]
        assert numbers(found[arm]) == pytest.approx(numbers(scores), abs=1e-5)
        for ours, theirs in zip(found[arm].examples, scores.examples, strict=True):
            assert (ours.generated, ours.correct) == (theirs.generated, theirs.correct)
            assert ours.supervised_tokens == theirs.supervised_tokens
    assert sum(example.generated is not None for example in found[Arm.BASE].examples) == counts[1]
    assert found[Arm.WINNER].loss != pytest.approx(found[Arm.FULL_DEPTH].loss, abs=1e-4)


class Handles:
    """Engines that tell of which example they were asked, a second each; `fails_at` a number of parts one dies."""

    def __init__(self, size: int, seconds: float = math.inf, fails_at: int = -1) -> None:
        self.size, self.left, self.fails_at = size, seconds, fails_at
        self.asked: list[tuple[Any, ...]] = []

    def submit(self, engine: int, method: str, *rest: Any) -> Any:
        if method in ("restore", "evict"):
            return rest[0]
        _, session, count, *_, start = rest
        self._spend(count, method, session, start)
        each = range(start, start + count)
        return [(float(n), 1) for n in each] if method == "losses" else [str(n) for n in each]

    def get(self, found: Any) -> Any:
        return found

    def apply(self, engine: int, work: Callable[..., Any], session: str | None, *rest: Any) -> Any:
        *_, seconds = rest
        self._spend(30, "tasks", session, seconds)
        return TaskScores(metrics={"gsm8k/exact": 0.5}, cut={"gsm8k": 16}, failures={"mmlu": "KeyError: 'x'"})

    def _spend(self, seconds: float, *asked: Any) -> None:
        if len(self.asked) == self.fails_at:
            raise BandsearchError("An engine died.")
        self.asked.append(asked)
        self.left -= seconds


@pytest.fixture
def scored(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[Arm, ArmScores]]:
    monkeypatch.setattr(arms, "EVALUATION_ROWS", 4)

    def score(
        home: RunDirectory,
        handles: Any,
        tasks: tuple[str, ...] = (),
        heard: Any = silent,
        lm_eval: float = 0.0,
        heed: Callable[[], Any] = str,
    ) -> Any:
        checkpoints: dict[Arm, Path | None] = {Arm.BASE: None} | {arm: Path(arm) for arm in CANDIDATES}
        job, plan = job_of(engine, tasks), plan_of(texts=0, lm_eval=lm_eval)
        return arms.Scoring(handles, home, job, plan, checkpoints, lambda: handles.left, heard, heed).scores()

    return score


@pytest.mark.parametrize("engines", [1, 2, 3, 8])
@pytest.mark.parametrize("seconds", [-5.0, 1.0, 30.0, 40.0, 55.0, 70.0, 1000.0])
def test_what_time_cuts_short_begins_with_the_same_examples(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path, engines: int, seconds: float
) -> None:
    found = scored(home_at(tmp_path), Handles(engines, seconds)).values()
    assert len({(len(scores.examples), scores.answered) for scores in found}) == 1
    for scores in found:
        places = [example.loss for example in scores.examples]
        assert places == list(range(len(places)))
        assert len(places) in (4, 8, 12, 13)
        answers = [example.generated for example in scores.examples]
        given = [answer for answer in answers if answer is not None]
        assert answers == [*map(str, range(len(given))), *[None] * (len(places) - len(given))]
        if seconds == 1000.0:
            assert (len(places), len(given)) == (TEST, GENERATED)


def test_arms_are_cut_short_at_the_same_place_and_answers_have_a_share(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path
) -> None:
    found = scored(home_at(tmp_path), Handles(1, 40.0)).values()
    assert [(len(scores.examples), scores.answered) for scores in found] == [(8, 4)] * 3


@pytest.mark.parametrize("lm_eval", [10.0, 18.0, 90.0])
def test_tasks_take_from_the_other_scores_no_more_than_the_plan_gives_them(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path, lm_eval: float
) -> None:
    planned = 3 * (TEST + GENERATED) * MARGIN + lm_eval
    pool = Handles(1, planned)
    found = scored(home_at(tmp_path / "planned"), pool, ("gsm8k",), lm_eval=lm_eval).values()
    assert [(len(scores.examples), scores.answered) for scores in found] == [(TEST, GENERATED)] * 3
    assert next(asked[2] for asked in pool.asked if asked[0] == "tasks") >= lm_eval / 3
    # With half of the time all make do with less.
    pool = Handles(1, planned / 2)
    found = scored(home_at(tmp_path / "half"), pool, ("gsm8k",), lm_eval=lm_eval).values()
    assert all(0 < scores.answered < GENERATED for scores in found)
    assert all(len(scores.examples) < TEST for scores in found)
    # A part of an arm takes four seconds, and ends when it ends.
    assert next(asked[2] for asked in pool.asked if asked[0] == "tasks") >= (lm_eval / 2 - 4) / 3


def test_what_was_scored_before_a_kill_is_not_scored_again(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path
) -> None:
    home, killed, pool = home_at(tmp_path / "killed"), Handles(1, fails_at=14), Handles(1)
    with pytest.raises(BandsearchError, match="An engine died"):
        scored(home, killed)
    found = scored(home, pool)
    whole = Handles(1)
    assert found == scored(home_at(tmp_path / "whole"), whole)
    assert killed.asked + pool.asked == whole.asked
    assert len(killed.asked) == 14


@pytest.mark.parametrize("engines", [1, 3])
def test_stopped_it_begins_no_more_parts_and_goes_on_with_those_it_has(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path, engines: int
) -> None:
    home, stopped, pool = home_at(tmp_path / "stopped"), Handles(engines), Handles(engines)

    def heed() -> None:
        if len(stopped.asked) >= 7:
            raise InterruptedRunError("Stopped.")

    with pytest.raises(InterruptedRunError):
        scored(home, stopped, heed=heed)
    assert 7 <= len(stopped.asked) < 7 + engines
    found = scored(home, pool)
    whole = Handles(1)
    assert found == scored(home_at(tmp_path / "whole"), whole)
    assert len(stopped.asked) + len(pool.asked) == len(whole.asked)


def test_a_part_that_is_missing_ends_what_counts(scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path) -> None:
    """Killed while an engine was slower than the others, and no time is left for its part."""
    home = home_at(tmp_path)
    scored(home, Handles(1))
    (home.scratch / "arms" / "winner-losses-4.json").unlink()
    found = scored(home, Handles(1, -1.0))
    assert {arm: (len(scores.examples), scores.answered) for arm, scores in found.items()} == {
        Arm.BASE: (4, 4),
        Arm.FULL_DEPTH: (4, 4),
        Arm.WINNER: (4, 4),
    }


def test_tasks_of_an_arm_are_read_on_one_engine_with_what_time_is_left(
    scored: Callable[..., dict[Arm, ArmScores]], tmp_path: Path
) -> None:
    heard: list[str] = []
    pool = Handles(1, 162.0)
    hear = lambda update: heard.append(update.message)  # noqa: E731
    found = scored(home_at(tmp_path / "alone"), pool, ("gsm8k", "mmlu"), hear, lm_eval=79.2)
    assert [asked for asked in pool.asked if asked[0] == "tasks"] == [
        ("tasks", None, 30.0),
        ("tasks", Path("full_depth"), 30.0),
        ("tasks", Path("winner"), 30.0),
    ]
    assert found[Arm.WINNER].tasks == {"gsm8k/exact": 0.5}
    assert found[Arm.WINNER].documents("gsm8k/exact") == 16
    assert found[Arm.WINNER].task_failures == {"mmlu": "KeyError: 'x'"}
    assert [message for message in heard if "documents" in message] == [
        f"gsm8k: time allowed 16 documents for {arm}" for arm in ("base", "full depth", "winner")
    ]
    assert [message for message in heard if "mmlu" in message] == [
        f"mmlu could not be read for {arm}: KeyError: 'x'" for arm in ("base", "full depth", "winner")
    ]
    unbounded = Handles(2)
    scored(home_at(tmp_path / "unbounded"), unbounded, ("gsm8k",))
    assert [asked[2] for asked in unbounded.asked if asked[0] == "tasks"] == [None] * 3
