"""What the command line does with a finished run, from Python."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bandsearch import api
from bandsearch.cli import looking
from bandsearch.cli.options import takes_specification
from bandsearch.models.aliases import resolve
from bandsearch.models.families import FAMILIES
from bandsearch.models.loading import load_model, summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.run.outcome import outcome_of
from bandsearch.rundir import RunDirectory
from bandsearch.values.environment import Environment
from bandsearch.values.errors import AdapterError, DataError, FullDiskError, RunDirectoryError
from bandsearch.values.lineage import Lineage
from bandsearch.values.spec import ModelSpec, RunSpec

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


def told(run: Path) -> Path:
    """The run with the lineage that runs of today leave."""
    file = run / "environment.json"
    environment = Environment.model_validate_json(file.read_text())
    layout = summarize(environment.source).layout
    lineage = Lineage(source=environment.source, layout=layout, data="words", dtype="float32")
    file.write_text(environment.model_copy(update={"lineage": lineage}).model_dump_json())
    return run


def test_an_exported_card_names_the_place_that_it_is_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = told(shutil.copytree(REFERENCE, tmp_path / "run"))
    looking.export(run, tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"PeftModel.from_pretrained(base, '{tmp_path}/mine')" in card
    assert f"bandsearch={tmp_path}/mine" in card
    assert "## Test split" in card
    assert str(run) not in card
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/mine\n"
    assert f"--lora-modules bandsearch={tmp_path}/mine" in said.err


def test_a_merged_export_is_a_model_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = told(shutil.copytree(REFERENCE, tmp_path / "run"))
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    looking.export(run, tmp_path / "mine", merged=True)
    assert capsys.readouterr().err.splitlines()[-1] == f"vllm serve {tmp_path}/mine"
    source = resolve(ModelSpec(name="demo"))
    base, own = load_model(source, "fp32"), load_tokenizer(source)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mine")
    ids = tokenizer("one two three", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [own("one two three")["input_ids"]]
    asked = [{"role": "user", "content": "one"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "one!"
    plain = base(ids).logits
    together = PeftModel.from_pretrained(base, str(run / "adapter"))(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    # As the base is stored; beside the adapter it was loaded in more.
    assert merged.dtype == torch.bfloat16
    apart = (merged.float()(ids).logits - together).abs().max()
    assert apart < 0.05 * (plain - together).abs().max()
    assert "PeftModel" not in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize("merged", [True, False])
def test_an_export_is_refused_before_the_disk_is_full(
    merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FullDiskError, match=r"free\. Free some space, or choose a directory on another disk") as told:
        api.export(REFERENCE, tmp_path / "mine", merged=merged)
    assert not list(tmp_path.iterdir())
    # There is nothing to resume.
    assert told.value.exit_code == 2


def test_an_export_that_fills_the_disk_leaves_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(FullDiskError, match="or choose a directory on another disk") as told:
        api.export(REFERENCE, tmp_path / "mine")
    assert not list(tmp_path.iterdir())
    assert told.value.exit_code == 2


@pytest.mark.parametrize(("family", "command"), [("gpt2", False), ("qwen2", True)])
def test_a_run_says_how_its_adapter_is_served(tmp_path: Path, family: str, command: bool) -> None:
    run = told(shutil.copytree(REFERENCE, tmp_path / "run"))
    file = run / "environment.json"
    environment = Environment.model_validate_json(file.read_text())
    serving = FAMILIES[family].serving
    layout = environment.lineage.layout.model_copy(update={"family": family, "serving": serving})
    lineage = environment.lineage.model_copy(update={"layout": layout})
    file.write_text(environment.model_copy(update={"lineage": lineage}).model_dump_json())
    outcome = outcome_of(RunDirectory.open(run))
    api.report(run)
    assert ("vllm serve" in (run / "report.md").read_text()) is command
    assert (outcome.serve_command is not None) is command
    assert (f"bandsearch export {run} DESTINATION --merged" in outcome.not_served) is not command


def test_an_adapter_is_scored_beside_its_base() -> None:
    found = api.evaluate(
        REFERENCE / "adapter", api.specify("demo", "demo:words", trials=1, max_examples=200), examples=8
    )
    base, tuned = found.arms
    assert len(base.examples) == len(tuned.examples) == 8
    assert tuned.loss < base.loss


def test_an_adapter_that_only_vllm_would_refuse_is_scored(tmp_path: Path) -> None:
    """As it is trained: beside the weights, with its own scale by module."""
    adapter = shutil.copytree(REFERENCE / "adapter", tmp_path / "adapter")
    spec = api.specify("demo", "demo:words", trials=1, max_examples=200)
    plain = api.evaluate(adapter, spec, examples=4).arms[1]
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {".*": 1e-6}}))
    base, silenced = api.evaluate(adapter, spec, examples=4).arms
    assert silenced.loss == pytest.approx(base.loss, abs=1e-3)
    assert plain.loss < base.loss - 0.01
