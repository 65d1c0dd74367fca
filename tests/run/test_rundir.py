"""A run directory never holds half a file, another run's files, or two processes."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from bandsearch import rundir
from bandsearch.rundir import Events, Records, RunDirectory, disk_errors, require_disk, write_atomically
from bandsearch.values.band import Band
from bandsearch.values.budget import Budget
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.progress import Update
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import ChatTemplate, DataSpec, ModelSpec, RunSpec
from bandsearch.values.trial import Point, TrialResult, TrialState

SPEC = RunSpec(
    model=ModelSpec(name="demo"),
    data=DataSpec(name="demo:anything"),
    space=SearchSpace(name="quick"),
    budget=Budget.parse("5min"),
)
RESULT = TrialResult(
    number=3,
    candidate=Candidate(bands=(Band(start=1, stop=4),), rank=4, alpha=32, targets=("mlp",), learning_rate=2e-3),
    role=Role.SEARCHED,
    seed=1,
    state=TrialState.PRUNED,
    points=(Point(steps=10, loss=1.5, seconds=2.0),),
    trainable_parameters=1234,
    proposed_by="sampler",
)


def test_the_same_spec_goes_on_and_another_is_refused_by_name(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", SPEC)
    assert RunDirectory.create(tmp_path / "run", SPEC).read_spec() == SPEC
    with pytest.raises(RunDirectoryError, match="seed 0 -> 1"):
        RunDirectory.create(tmp_path / "run", SPEC.model_copy(update={"seed": 1}))


def test_a_chat_template_is_kept_with_the_run_and_another_is_refused(tmp_path: Path) -> None:
    def with_template(text: str) -> RunSpec:
        template = ChatTemplate(name="mine.jinja", text=text)
        return SPEC.model_copy(update={"data": SPEC.data.model_copy(update={"template": template})})

    text = "{%- for m in messages %}\n\t{{ m['content'] + '\\n' }}  \n{% endfor -%}\n\n# \"ß\u2028\x85\"\n"
    RunDirectory.create(tmp_path / "run", with_template(text))
    assert RunDirectory.open(tmp_path / "run").read_spec() == with_template(text)
    with pytest.raises(RunDirectoryError, match=r"\(data\.template\.text differs\)"):
        RunDirectory.create(tmp_path / "run", with_template(text + "."))
    with pytest.raises(RunDirectoryError, match=r"data\.template\.name 'mine\.jinja' -> None"):
        RunDirectory.create(tmp_path / "run", SPEC)


def test_a_spec_from_before_there_were_several_sources_is_read(tmp_path: Path) -> None:
    home = RunDirectory.create(tmp_path / "run", SPEC)
    spec = yaml.safe_load(home.spec_file.read_text())
    for key in ("also", "validation", "test"):
        del spec["data"][key]
    spec["data"]["max_length"] = 1024
    home.spec_file.write_text(yaml.safe_dump(spec))
    assert home.read_spec().data == DataSpec(name=SPEC.data.name, max_length=1024)


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(RunDirectoryError, match=r"caf\\udce9' is not UTF-8\. Choose another --out"):
        RunDirectory.create(folder, SPEC)
    assert not folder.exists()
    # One that was renamed afterwards can still be reported on.
    write_atomically(tmp_path / "report.md", f"In {folder}")
    assert (tmp_path / "report.md").read_text(encoding="utf-8").endswith("caf?")


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="not a bandsearch run"):
        RunDirectory.create(tmp_path, SPEC)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(RunDirectoryError, match=r"no spec\.yaml"):
        RunDirectory.open(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    home = RunDirectory.create(tmp_path / "run", SPEC)
    with home, pytest.raises(RunDirectoryError, match="Another process"), RunDirectory.open(home.path):
        pass
    with RunDirectory.open(home.path):
        pass


def test_records_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Records(path).append(RESULT)
    with path.open("a") as file:
        file.write('{"number": 4, "cand')
    records = Records(path)
    records.append(RESULT.model_copy(update={"number": 5}))
    assert [result.number for result in records.results()] == [3, 5]
    assert records.results()[0] == RESULT


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(RESULT.model_dump_json() + "\nnot a record\n")
    with pytest.raises(RunDirectoryError, match=r"trials\.jsonl:2"):
        Records(path).results()


def test_the_log_goes_on_behind_a_torn_line_and_a_full_disk_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    Events(path).append(Update(stage="probe", message="gradients"))
    with path.open("a") as file:
        file.write('{"time": "2026-')
    events = Events(path)
    events.append(Update(stage="search", done=0.5))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as at:
        at.setattr(rundir, "append_line", full)
        events.append(Update(stage="search", message="lost"))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: events.append(Update(stage="search", finished=number)), range(40)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["probe", *["search"] * 41]
    assert sorted(line["finished"] for line in lines[2:]) == list(range(40))
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    # A folder that cannot be written in.
    Events(tmp_path / "not" / "there").append(Update(stage="search"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "winner.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match=r"full.*bandsearch resume"), disk_errors(tmp_path):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["winner.json"]


def test_too_small_a_disk_is_refused_before_the_start(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(RunDirectoryError, match="GB free"):
        require_disk(tmp_path / "not" / "there", 10**18)


def test_a_directory_is_discarded_whole_but_never_under_another_process(tmp_path: Path) -> None:
    home = RunDirectory.create(tmp_path / "run", SPEC)
    assert home.is_new
    assert not RunDirectory.create(tmp_path / "run", SPEC).is_new
    with RunDirectory.open(tmp_path / "run"), pytest.raises(RunDirectoryError, match="Another process"):
        home.discard()
    home.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_before_the_spec_is_begun_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert RunDirectory.create(run, SPEC).is_new
    (run / "spec.yaml").rename(run / ".spec.yaml.x7f")
    assert RunDirectory.create(run, SPEC).read_spec() == SPEC
    (run / "spec.yaml").unlink()
    (run / "scratch" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="not a bandsearch run"):
        RunDirectory.create(run, SPEC)


def test_two_that_begin_in_one_directory_do_not_mix(tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "run")
    with other, pytest.raises(RunDirectoryError, match="Another process"):
        RunDirectory.create(tmp_path / "run", SPEC)
    assert RunDirectory.create(tmp_path / "run", SPEC).is_new


def test_a_disk_without_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", failing)
    with pytest.raises(RunDirectoryError, match=r"cannot be locked \(No locks available\)\. Choose an --out"):
        RunDirectory.create(tmp_path / "run", SPEC)
