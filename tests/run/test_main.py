"""What the main flow leaves behind where it is refused or fails, and what it says then."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from costs import costs_of
from safetensors.torch import load_file, save_file

from bandsearch.data import dataset
from bandsearch.data.kept import keep
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.pool import EnginePool
from bandsearch.run import engines, main, stages, underway
from bandsearch.run.engines import engine_setups
from bandsearch.run.job import default_directory, prepare_job
from bandsearch.run.planning import make_plan
from bandsearch.rundir import RunDirectory
from bandsearch.values import ledger
from bandsearch.values.budget import Budget
from bandsearch.values.environment import Environment
from bandsearch.values.errors import (
    BandsearchError,
    BudgetError,
    DataError,
    InterruptedRunError,
    ModelError,
    RunDirectoryError,
    SpaceError,
)
from bandsearch.values.progress import Update
from bandsearch.values.source import Source
from bandsearch.values.space import BandSpace, SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec

SPEC = RunSpec(
    model=ModelSpec(name="demo"),
    data=DataSpec(name="demo:anything"),
    space=SearchSpace(name="quick"),
    budget=Budget.parse("5min"),
)

COSTS = costs_of(
    0.01,
    seconds_per_validation=0.05,
    seconds_per_test_loss=0.01,
    seconds_per_generation=0.01,
    load_seconds=1,
    peak_memory_bytes=1,
)
EXAMPLES = {"train_examples": 100, "validation_examples": 20, "test_examples": 20}
PLAN = make_plan(SPEC, COSTS, **EXAMPLES, engines=1, wall_seconds=300.0, adapter_bytes=1, retention_texts=0)
SOURCE = Source(location="org/base", is_local=False, slug="base")


def starts_with(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any]) -> None:
    job = SimpleNamespace(
        spec=SPEC, dataset=SimpleNamespace(notes=()), devices=1, budget_seconds=None, wall_seconds=None
    )
    monkeypatch.setattr(main, "prepare_job", lambda spec, known: job)
    monkeypatch.setattr(underway, "keep", lambda dataset, path: None)
    monkeypatch.setattr(underway, "environment", lambda job: Environment(facts={}, source=SOURCE))
    monkeypatch.setattr(underway, "start_engines", start)


def fails_at_start(monkeypatch: pytest.MonkeyPatch, error: BandsearchError) -> None:
    def failing(*_: Any) -> None:
        raise error

    starts_with(monkeypatch, failing)


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (BudgetError("Too small."), False),
        (ModelError("Not a model."), False),
        (LostEngineError("An engine died.", "Look."), True),
        (RunDirectoryError("The disk is full."), True),
    ],
)
def test_a_new_directory_goes_with_a_refusal_and_stays_where_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BandsearchError, stays: bool
) -> None:
    fails_at_start(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        main.run(SPEC, tmp_path / "run")
    assert (tmp_path / "run" / "spec.yaml").exists() is stays
    if isinstance(error, LostEngineError):
        assert f"bandsearch resume {tmp_path / 'run'}" in str(raised.value)


def test_an_engine_lost_after_the_person_asked_to_stop_is_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def failing(*_: Any) -> None:
        asked.set()
        raise LostEngineError("An engine died.", "Look.")

    starts_with(monkeypatch, failing)
    with pytest.raises(InterruptedRunError, match="bandsearch resume") as raised:
        main.run(SPEC, tmp_path / "run", stop=asked.is_set)
    assert raised.value.exit_code == 130


def test_stopped_before_its_engines_are_started_it_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at_start(monkeypatch, LostEngineError("An engine died.", "Look."))
    with pytest.raises(InterruptedRunError, match="bandsearch resume"):
        main.run(SPEC, tmp_path / "run", stop=lambda: True)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_interrupted_before_anything_began_it_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    fails_at_start(monkeypatch, LostEngineError("An engine died.", "Look."))
    monkeypatch.setattr(underway, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main.run(SPEC, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Deaf(EnginePool):
    """Engines at work that they do not come back from."""

    def __init__(self, asked: threading.Event) -> None:
        super().__init__([])
        self._asked, self._is_over = asked, threading.Event()

    def work(self, *_: Any, **__: Any) -> Any:
        self._asked.set()
        assert self._is_over.wait(30)
        raise LostEngineError("An engine died.", "Look.")

    apply = work

    def abandon(self) -> None:
        self._is_over.set()

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("stage", ["plan", "probe", "evaluate"])
def test_stages_that_do_not_ask_end_once_a_stop_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    asked = threading.Event()
    deaf = Deaf(asked)
    starts_with(monkeypatch, lambda *_: deaf)
    monkeypatch.setattr(stages, "PART_PATIENCE", 0.1)
    monkeypatch.setattr(underway, "measured_plan", deaf.work if stage == "plan" else lambda *_, **__: PLAN)
    monkeypatch.setattr(deaf, "pack", lambda candidates: None)
    if stage == "evaluate":
        monkeypatch.setattr(main, "_winner", lambda at: None)
        for name in ("retrain", "export"):
            monkeypatch.setattr(stages, name, lambda *_: None)
        monkeypatch.setattr(stages, "evaluate_arms", deaf.work)
    with pytest.raises(InterruptedRunError, match="bandsearch resume"):
        main.run(SPEC, tmp_path / "run", stop=asked.is_set)
    assert json.loads((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()[-1])["stage"] == "close"


def test_what_is_said_is_in_the_log_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(job: Any, listen: Any, *_: Any) -> None:
        listen(Update(stage="load", message="2 engines"))
        raise LostEngineError("An engine died.", "Look.")

    heard: list[Update] = []
    starts_with(monkeypatch, start)
    for _ in range(2):
        with pytest.raises(LostEngineError):
            main.run(SPEC, tmp_path / "run", listen=heard.append)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [line.pop("time") < "3" for line in lines] == [True, True]
    assert [Update(**line) for line in lines] == heard
    assert lines[0]["message"] == "2 engines"


def test_devices_are_released_though_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = []

    def start(*_: Any) -> SimpleNamespace:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(ledger, "append_line", full)
        return SimpleNamespace(stop=lambda: released.append(True))

    starts_with(monkeypatch, start)
    with pytest.raises(RunDirectoryError, match=r"is full.*bandsearch resume"):
        main.run(SPEC, tmp_path / "run")
    assert released
    assert (tmp_path / "run" / "spec.yaml").exists()


def test_a_run_knows_its_model_and_data_again(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"prompt": f"What follows {n}?", "completion": f" {n + 1}"}) + "\n" for n in range(60)]
    shutil.copytree(tiny_model("qwen2"), tmp_path / "model")
    (tmp_path / "mine.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    lost = LostEngineError("An engine died.", "Look.")
    monkeypatch.setattr(underway, "start_engines", lambda *_: (_ for _ in ()).throw(lost))
    spec = SPEC.model_copy(
        update={"model": ModelSpec(name="./model"), "data": DataSpec(name="mine.jsonl", max_length=64)}
    )
    home = RunDirectory(tmp_path / "run")

    def fails_with(error: type[BandsearchError], words: str, begin: bool = False) -> None:
        with pytest.raises(error, match=words):
            main.run(spec, Path("run")) if begin else main.resume(home.path)

    fails_with(LostEngineError, "An engine died", begin=True)
    before = home.read(home.environment, Environment)
    assert before is not None
    old = before.model_copy(update={"facts": before.facts | {"started": "2026-01-02T03:04:05+00:00"}})
    home.write(home.environment, old)
    fails_with(LostEngineError, "An engine died", begin=True)
    # From anywhere else too: the paths are absolute.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fails_with(LostEngineError, "An engine died")
    assert home.read(home.environment, Environment) == old
    (tmp_path / "mine.jsonl").write_text("".join(rows[1:]))
    fails_with(RunDirectoryError, r"^The data set is not the one .* began with.*new directory\.$")
    (tmp_path / "mine.jsonl").write_text("".join(rows))
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    fails_with(RunDirectoryError, "^The model is not the one")


def test_a_task_that_fails_is_refused_before_the_run_begins_and_ends_none_that_has(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [json.dumps({"prompt": f"What follows {n}?", "completion": f" {n + 1}"}) + "\n" for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(rows))
    (tmp_path / "lost.yaml").write_text(
        "task: lost\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere/rows.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
    )
    model, data = ModelSpec(name=str(tiny_model("qwen2"))), DataSpec(name=str(tmp_path / "mine.jsonl"), max_length=64)
    spec = SPEC.model_copy(update={"model": model, "data": data, "tasks": ("lost",), "task_directory": str(tmp_path)})
    with pytest.raises(DataError, match="The task lost could not be read"):
        main.run(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    kept = tmp_path / "data.arrow"
    keep(prepare_job(SPEC.model_copy(update={"model": model, "data": data})).dataset, kept)
    assert prepare_job(spec, known=kept).spec.tasks == ("lost",)


def test_a_run_encodes_its_data_once_and_engines_are_given_what_it_saw(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"prompt": f"What follows {n}?", "completion": f" {n + 1}"}) + "\n" for n in range(60)]
    mine, out = tmp_path / "mine.jsonl", tmp_path / "run"
    mine.write_text("".join(rows))
    model, data = ModelSpec(name=str(tiny_model("qwen2"))), DataSpec(name=str(mine), max_length=64)
    spec = SPEC.model_copy(update={"model": model, "data": data})
    expected = prepare_job(spec).dataset
    opened, encoded = [], []

    def start(job: Any, listen: Any, data: Path, *_: Any) -> None:
        # Somebody writes to the file while engines start.
        mine.write_text("".join(rows[:30]))
        opened.append(Engine.load(engine_setups(job, data)[0]).dataset)
        mine.write_text("".join(rows))
        raise LostEngineError("An engine died.", "Look.")

    encode = dataset.encode
    monkeypatch.setattr(dataset, "encode", lambda *args: encoded.append(args) or encode(*args))
    monkeypatch.setattr(underway, "start_engines", start)
    for go_on in (lambda: main.run(spec, out), lambda: main.resume(out), lambda: main.run(spec, out)):
        with pytest.raises(LostEngineError, match="An engine died"):
            go_on()
    assert len(encoded) == 1
    for found in opened:
        assert (found.fingerprint, found.notes, found.counts) == (expected.fingerprint, expected.notes, expected.counts)
        assert found.train.input_ids.tolist() == expected.train.input_ids.tolist()
        assert [each.place for each in found.test] == [each.place for each in expected.test]
    # Whoever has deleted the scratch folder, or lost it half-written, has it again.
    (out / "scratch" / "data.arrow").write_bytes(b"half")
    with pytest.raises(LostEngineError, match="An engine died"):
        main.resume(out)
    assert len(encoded) == 2
    assert len(opened[-1].train) == len(expected.train)


def test_a_disk_too_full_for_the_data_set_is_said_before_anything_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    starts_with(monkeypatch, lambda *_: pytest.fail("nothing to start with"))
    monkeypatch.setattr(underway, "keep", full)
    with pytest.raises(RunDirectoryError, match=r"is full.*bandsearch resume"):
        main.run(SPEC, tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    assert (tmp_path / "run" / "spec.yaml").exists()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            SearchSpace(name="mine", targets=("all", "q_proj+gatee_proj")),
            "'mine' asks for q_proj.gatee_proj.*Choose from",
        ),
        (SearchSpace(name="mine", bands=BandSpace(count=2, width=(0.1, 0.4), snap=12)), "2 bands do not fit"),
    ],
)
def test_a_space_that_the_model_cannot_have_is_refused_before_anything_is_done(
    space: SearchSpace, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpaceError, match=words):
        main.run(SPEC.model_copy(update={"space": space}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_path_is_left_as_it_was_given() -> None:
    spec = prepare_job(SPEC.model_copy(update={"data": DataSpec(name="demo:swap")})).spec
    assert (spec.model.name, spec.data.name, spec.retention, spec.atlas) == ("demo", "demo:swap", None, None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("mine/A b.jsonl",), "a-b.jsonl"),
        (("a.jsonl", "demo:swap"), "a.jsonl-demo-swap"),
        (("a.jsonl", "org/b", "c.csv", "d.csv"), "a.jsonl-b-and-2-more"),
    ],
)
def test_a_directory_is_named_after_all_that_is_trained_on(names: tuple[str, ...], said: str) -> None:
    spec = SPEC.model_copy(update={"data": DataSpec(name=names[0], also=names[1:])})
    assert default_directory(spec, SOURCE).name.rsplit("-", 2)[0] == f"base-{said}"


def test_where_the_system_does_not_say_when_it_started_no_earlier_state_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may have left a state's flag on the disk and not the state."""
    kept = tmp_path / "prefix" / "key"
    found = []
    pool = SimpleNamespace(apply=lambda *_: ())
    monkeypatch.setattr(engines, "engine_setups", lambda *_: [SimpleNamespace(device="cpu")])
    monkeypatch.setattr(engines.EnginePool, "start", lambda *_: found.append(kept.exists()) or pool)
    for boot in ("boot", None):
        kept.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(engines, "boot_id", lambda boot=boot: boot)
        engines.start_engines(SimpleNamespace(source=SOURCE), lambda _: None, tmp_path / "data", tmp_path / "prefix")
    assert found == [True, False]


def test_every_file_of_the_data_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, start in (("a", 0), ("b", 50), ("c", 100)):
        rows = [json.dumps({"prompt": f"What is {n}?", "completion": f"{n}"}) + "\n" for n in range(start, start + 20)]
        Path(f"{name}.jsonl").write_text("".join(rows))
    data = DataSpec(name="a.jsonl", also=("b.jsonl", "demo:swap"), test="c.jsonl", max_length=64)
    found = prepare_job(SPEC.model_copy(update={"data": data})).spec.data
    assert found.names == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "demo:swap")
    assert (found.validation, found.test) == (None, str(tmp_path / "c.jsonl"))
