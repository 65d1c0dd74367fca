"""What the command line does with a finished run, from Python."""

import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bandsearch import api
from bandsearch.cli.options import takes_specification
from bandsearch.values.errors import AdapterError, DataError, RunDirectoryError
from bandsearch.values.spec import RunSpec

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "demo-words"


def test_a_finished_run_is_looked_at_exported_and_checked(tmp_path: Path) -> None:
    run = shutil.copytree(REFERENCE, tmp_path / "run")
    assert api.status(run).next_stage is None
    (run / "report.html").unlink()
    assert api.report(run) == run / "report.html"
    assert "<html" in (run / "report.html").read_text()
    adapter = api.export(run, tmp_path / "mine")
    assert api.verify(adapter, "demo") == ()
    with pytest.raises(AdapterError, match="exists"):
        api.export(run, tmp_path / "mine")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert api.verify(adapter, "demo")


def test_paths_may_be_strings(tmp_path: Path) -> None:
    run = str(shutil.copytree(REFERENCE, tmp_path / "run"))
    assert api.status(run).next_stage is None
    assert str(api.report(run)) == f"{run}/report.html"
    adapter = api.export(run, str(tmp_path / "mine"))
    assert api.verify(str(adapter), "demo") == ()
    with pytest.raises(RunDirectoryError, match="another spec"):
        api.run(api.specify("demo", trials=1), run)


def test_several_data_sets_and_files_of_rows_are_specified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").touch()
    spec = api.specify("demo", ["a.jsonl", "b.jsonl"], trials=1, test="c.jsonl")
    assert (spec.data.names, spec.data.test) == (("a.jsonl", "b.jsonl"), "c.jsonl")
    app = typer.Typer()
    seen: list[RunSpec] = []
    app.command()(takes_specification()(lambda spec: seen.append(spec)))
    options = ["-m", "demo", "-d", "a.jsonl", "-d", "b.jsonl", "--test", "c.jsonl", "--trials", "1"]
    told = CliRunner().invoke(app, options)
    assert (told.exit_code, seen) == (0, [spec])
    for wrong in ({"dataset": ["a.jsonl", "d.jsonl"]}, {"dataset": "a.jsonl", "validation": "d.jsonl"}):
        with pytest.raises(DataError, match=r"no data file d\.jsonl"):
            api.specify("demo", trials=1, **wrong)
    spec = api.specify("demo", "org/name@v1", trials=1)
    assert spec.data.name == "org/name@v1"


def test_an_adapter_is_scored_beside_its_base() -> None:
    found = api.evaluate(
        REFERENCE / "adapter", api.specify("demo", "demo:words", trials=1, max_examples=200), examples=8
    )
    base, tuned = found.arms
    assert len(base.examples) == len(tuned.examples) == 8
    assert tuned.loss < base.loss
