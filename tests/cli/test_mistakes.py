"""What is wrong is said in one sentence with its remedy: no traceback, nothing on standard output, exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bandsearch.cli import doctor
from bandsearch.cli.app import app

ROOT = Path(__file__).parents[2]
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023"


def bandsearch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bandsearch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "."], ["not a bandsearch run", "run's directory"]),
        (["resume", "nowhere"], ["not a bandsearch run"]),
        (["models", "qwen9-1b"], ["no model called", "bandsearch models"]),
        (["verify", "nowhere", "--model", "./nothing"], ["does not exist"]),
        (["run", "-m", "demo", "-d", "demo:swap", "-b", "ten minutes"], ["Budget 'ten minutes'", "45min"]),
        (["run", "-m", "demo", "-d", "demo:swap"], ["Neither a budget nor a number of trials", "--budget"]),
        (["run", "-m", "qwen2.5-7b", "-b", "1h"], ["No data set", "--dataset"]),
        (["run", "-m", "demo", "-d", "demo:swap", "-b", "1h", "--space", "nope"], ["nope"]),
        (["plan", "-m", "demo", "-b", "1h", "--template", "none.jinja"], ["no chat template none.jinja", "chatml"]),
        (
            ["plan", "-m", "demo", "-b", "1h", "--columns", "article"],
            ["does not say what 'article' is read as", "pairs"],
        ),
        (["data", "demo:swap", "--template", "none.jinja"], ["no chat template none.jinja"]),
        (["run", "-m", "demo", "-b", "1h", "--epochs", "inf"], ["inf epochs are more", "at most 1000000."]),
        (["run", "-m", "demo", "-b", "1h", "--seed", str(2**31)], ["too large", "at most 2147483647."]),
        (["run", "-m", "demo", "-d", "", "-b", "1h"], ["data set is empty", "hub id"]),
        (["run", "-m", "demo", "--trials", "9", "--retention", "none.jsonl"], ["no data file none.jsonl"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    done = bandsearch(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("bandsearch: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_rows_longer_than_the_model_reads_are_said_where_data_are_looked_at(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = ({"prompt": f"{i}?", "completion": "word " * 600} for i in range(20))
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = bandsearch("data", "my.jsonl", "--model", str(tiny_model("gpt2")), cwd=tmp_path)
    assert done.returncode == 2
    assert "20 of 20 rows of my.jsonl are longer than 256 tokens" in done.stderr
    assert "as long as this model reads" in done.stderr


def test_a_program_is_told_in_json_what_is_wrong(tmp_path: Path) -> None:
    done = bandsearch("run", "-m", "demo", "-d", "demo:swap", "-b", "ten minutes", "--json", cwd=tmp_path)
    assert done.returncode == 2
    line = json.loads(done.stdout)
    assert (line["event"], line["type"]) == ("error", "BudgetError")
    assert done.stderr == f"bandsearch: {line['message']} {line['remedy']}\n"
    status = bandsearch("status", "nowhere", "--json", cwd=tmp_path)
    assert json.loads(status.stdout)["type"] == "RunDirectoryError"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "-m", "demo", "--trials", "0"], "--trials"),
        (["run", "--trials", "3"], "--model"),
        (["plan", "-m", "demo", "--dtype", "int3"], "int3"),
        (["verify", "x", "-m", "demo", "--frob"], "--frob"),
    ],
)
def test_wrong_usage_is_told_in_json_too(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = bandsearch(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    line = json.loads(done.stdout)
    assert (line["event"], line["type"]) == ("error", "UsageError")
    assert words in line["message"]
    assert f"bandsearch {arguments[0]} --help" in line["remedy"]
    # People are told as ever.
    assert words in done.stderr
    assert bandsearch(*arguments, cwd=tmp_path).stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("failures.LostEngineError('An engine died.')", 75),
        ("OSError(28, 'No space left on device')", 75),
        ("errors.RunDirectoryError('It is damaged.')", 2),
        ("errors.BudgetError('Too small.')", 2),
        ("errors.InterruptedRunError('Stopped.')", 130),
    ],
)
def test_exit_codes_tell_what_can_be_resumed(error: str, code: int, tmp_path: Path) -> None:
    worker = f"""
import sys
from pathlib import Path
from bandsearch import rundir
from bandsearch.cli import app
from bandsearch.engine import failures
from bandsearch.values import errors
def failing(**_):
    with rundir.disk_errors(Path("run")):
        raise {error}
app.app = failing
sys.argv = ["bandsearch", "run", "--json"]
app.main()
"""
    done = subprocess.run([sys.executable, "-c", worker], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code
    assert json.loads(done.stdout)["event"] == "error"
    help_page = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert f" {code} " in help_page


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["frobnicate"], ["run", "-m", "demo", "--trials", "0"], ["run", "-m", "demo", "--dtype", "int3"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_models_lists_every_alias() -> None:
    from bandsearch.models.aliases import ALIASES

    result = CliRunner().invoke(app, ["models", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["aliases"].items() >= ALIASES.items()
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).output
    assert set(shown.split()) >= {*ALIASES, *ALIASES.values()}


def test_models_describes_a_directory(tiny_model: Callable[[str], Path]) -> None:
    directory = str(tiny_model("llama"))
    result = CliRunner().invoke(app, ["models", directory], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "self_attn.q_proj" in result.output
    # Standard output of --json is JSON alone.
    described = CliRunner().invoke(app, ["models", directory, "--json"])
    assert json.loads(described.stdout)["layout"]["family"] == "llama"


def test_verify_exits_1_for_an_adapter_that_is_not_sound(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["verify", str(tmp_path), "--model", str(tiny_model("llama"))]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "missing_file" in result.output
    answer = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert answer["sound"] is False
    assert {finding["code"] for finding in answer["findings"]} == {"missing_file"}


def test_doctor_says_what_is_there() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    checks = {check["name"]: check for check in map(json.loads, result.stdout.splitlines())}
    assert checks["torch"]["level"] == "ok"
    assert checks["this folder"]["level"] == "ok"


def test_doctor_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandsearch.cli.doctor.PACKAGES", ("torch", "no-such-package"))
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "no-such-package not installed Install bandsearch again" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("files", "hidden", "level", "words"),
    [
        ({}, None, "ok", ["none visible"]),
        ({"proc/driver/nvidia/version": DRIVER, "dev/nvidia0": ""}, None, "fail", ["535.104.05", "for no CUDA"]),
        ({"dev/kfd": ""}, None, "fail", ["dev/kfd"]),
        ({"proc/driver/nvidia/version": DRIVER}, None, "warn", ["535.104.05", "--gpus all"]),
        ({"dev/nvidia0": ""}, "", "ok", ["hidden by CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_doctor_says_that_there_is_a_gpu_which_torch_does_not_see(
    files: dict[str, str], hidden: str | None, level: str, words: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor, "MACHINE", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check = doctor._gpus()
    assert check.level == level
    for word in words:
        assert word in f"{check.finding} {check.remedy}"


BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "built", "level"),
    [
        ((8, 0), BUILT, "ok"),
        # Machine code runs on later versions of its own generation, PTX on any later one.
        ((8, 9), BUILT, "ok"),
        ((12, 1), BUILT, "ok"),
        ((13, 0), BUILT, "ok"),
        ((7, 0), BUILT, "fail"),
        ((13, 0), BUILT[:-1], "fail"),
        ((8, 0), ["sm_86", "compute_90"], "fail"),
        ((9, 0), ["sm_90a"], "ok"),
        ((10, 3), ["sm_90a", "compute_100a"], "fail"),
        ((10, 3), ["sm_100f"], "ok"),
        ((12, 0), ["compute_100f"], "fail"),
    ],
)
def test_doctor_says_where_torch_is_not_built_for_a_gpu(
    capability: tuple[int, int], built: list[str], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = capability
    gpu = SimpleNamespace(name="Some GPU", major=major, minor=minor, total_memory=10**10)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: built)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    check = doctor._gpus()
    assert check.level == level
    if level == "fail":
        assert f"torch is not built for Some GPU (sm_{major}{minor}), only for {built[0]}" in check.finding
        assert "pytorch.org/get-started" in check.remedy
