"""Whole runs on a random model and a file of one's own, through the command line as a person starts it."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
KEPT = ("spec.yaml", "plan.json", "profile.json", "trials.jsonl", "winner.json", "evaluation.json")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "bandsearch", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def bandsearch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)


@pytest.fixture(scope="module")
def options(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """A run bounded by its number of candidates: 7, five of them baselines."""
    data = tmp_path_factory.mktemp("data") / "mine.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": f"Compute {a} + {b}", "answer": f"the answer is {a + b}"}) + "\n"
            for a in range(12)
            for b in range(12)
        )
    )
    model = tiny_model("qwen2")
    return ["run", "-m", model, "-d", data, "--space", "quick", "--trials", "7", "--steps", "24", "--batch-size", "8"]


@pytest.fixture(scope="module")
def finished(options: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A run's directory, and what it wrote as JSON lines."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = bandsearch(*options, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return out, [json.loads(line) for line in done.stdout.splitlines()]


def test_it_leaves_everything_and_its_claims_follow_from_the_files(finished: tuple[Path, list[dict]]) -> None:
    out, _ = finished
    assert runpy.run_path(str(ROOT / ".ci" / "check_run.py"))["check"](out) == []
    assert not (out / "scratch" / "prefix").exists(), "the cache is of no use any more and takes the most room"
    assert not (out / "scratch" / "data.arrow").exists(), "nor is the data set as engines read it"


def test_display_ledger_and_result_agree(finished: tuple[Path, list[dict]]) -> None:
    out, lines = finished
    result = lines[-1]
    assert result["event"] == "result"
    assert all(line["event"] == "update" for line in lines[:-1])
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert result["spent_seconds"] == pytest.approx(ledger[-1]["spent"], abs=0.01)
    shown = [line["spent"] for line in lines[:-1] if "spent" in line]
    assert shown == sorted(shown)
    assert shown[-1] <= result["spent_seconds"]
    # What timing takes before there is a plan is planned with.
    spent = {line["stage"]: line["stage_seconds"] for line in ledger}
    planned = json.loads((out / "plan.json").read_text())["costs"]["load_seconds"]
    assert spent["load"] + 0.8 * spent["plan"] < planned <= spent["load"] + spent["plan"]


def test_the_result_says_what_was_trained_in_the_end(finished: tuple[Path, list[dict]]) -> None:
    out, lines = finished
    winner = lines[-1]["winner"]
    done = [json.loads(path.read_text()) for path in (out / "scratch" / "full").glob("*/training.json")]
    told = {(each["learning_rate"], each["steps"], each["kept_step"]) for each in winner["trainings"]}
    assert told == {
        (each["candidate"]["learning_rate"], each["points"][-1]["steps"], each["best_steps"]) for each in done
    }
    assert {str(each["candidate"]) for each in winner["trainings"]} >= {
        str(winner["candidate"]),
        str(winner["baseline"]),
    }


def test_how_well_cheap_signals_predicted_is_logged_and_kept_in_the_atlas(
    finished: tuple[Path, list[dict]], options: list[str | Path]
) -> None:
    out, _ = finished
    events = [json.loads(line)["message"] for line in (out / "events.jsonl").read_text().splitlines()]
    logged = [message for message in events if "rank correlation" in message]
    shown = bandsearch("atlas", "show", options[2], "--json").stdout.splitlines()[-1]
    kept = [(each["predictor"], each["outcome"]) for each in json.loads(shown)["signals"]]
    assert kept
    assert [message.split(": rank correlation")[0] for message in logged] == [" against ".join(each) for each in kept]


def test_what_finalists_forgot_is_read_on_as_many_texts_as_planned(finished: tuple[Path, list[dict]]) -> None:
    out, _ = finished
    read = json.loads((out / "plan.json").read_text())["confirm_texts"] > 0
    finalists = json.loads((out / "winner.json").read_text())["finalists"]
    assert all((each["divergence"] is not None) == read for each in finalists)
    assert ("what each forgets" in (out / "report.md").read_text()) == read


def test_the_adapter_loads_in_peft_and_scores_as_reported(
    finished: tuple[Path, list[dict]], options: list[str | Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bandsearch.data.dataset import prepare
    from bandsearch.values.spec import DataSpec

    out, _ = finished
    directory, data = options[2], options[4]
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out / "adapter").eval()
    # The longest the tiny model reads.
    test = prepare(DataSpec(name=str(data), max_length=256), AutoTokenizer.from_pretrained(directory), seed=0).test
    reported = json.loads((out / "evaluation.json").read_text())["arms"]
    scores = next(arm["examples"] for arm in reported if arm["arm"] == "winner")
    assert len(scores) == len(test)
    for example, score in zip(test, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(example.input_ids[None], dtype=torch.long)).logits[0]
        places = [place for place, learned in enumerate(example.supervised) if learned]
        asked = torch.tensor(example.input_ids[places], dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits[[place - 1 for place in places]], asked)
        assert float(loss) == pytest.approx(score["loss"], abs=1e-5)


def test_what_it_forgot_is_what_plain_peft_computes(
    finished: tuple[Path, list[dict]], options: list[str | Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bandsearch.data.retention import retention_texts

    out, lines = finished
    tokenizer = AutoTokenizer.from_pretrained(options[2])
    base = AutoModelForCausalLM.from_pretrained(options[2], dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(options[2], dtype=torch.float32)
    model = PeftModel.from_pretrained(again, out / "adapter").eval()
    arms = {arm["arm"]: arm["retention"] for arm in json.loads((out / "evaluation.json").read_text())["arms"]}
    texts = retention_texts(None, tokenizer, 256).texts
    assert len(texts) == len(arms["winner"]["losses"]) == len(arms["base"]["losses"])
    assert set(arms["base"]["divergences"]) == {0.0}
    for place, text in enumerate(texts[:8]):
        ids = torch.tensor(text.input_ids[None], dtype=torch.long)
        with torch.no_grad():
            p, q = (each(ids).logits[0, :-1].double().log_softmax(-1) for each in (base, model))
        for name, logarithms in (("base", p), ("winner", q)):
            loss = -logarithms.gather(1, ids[0, 1:, None]).mean()
            assert float(loss) == pytest.approx(arms[name]["losses"][place], abs=1e-5)
        divergence = float((p.exp() * (p - q)).sum(-1).mean())
        assert divergence == pytest.approx(arms["winner"]["divergences"][place], abs=1e-5)
    assert "32 texts away from the task (neutral prompts)" in lines[-1]["verdict"]
    assert "What was forgotten" in (out / "report.md").read_text()
    assert "retention loss" in (out / "adapter" / "README.md").read_text()


def test_eval_finds_the_same_forgotten(finished: tuple[Path, list[dict]], options: list[str | Path]) -> None:
    out, _ = finished
    done = bandsearch("eval", out / "adapter", *options[1:5], "--examples", "2", "--json")
    assert done.returncode == 0, done.stderr
    base, adapter = (arm["retention"] for arm in json.loads(done.stdout.splitlines()[-1])["arms"])
    arms = {arm["arm"]: arm["retention"] for arm in json.loads((out / "evaluation.json").read_text())["arms"]}
    assert base["losses"] == pytest.approx(arms["base"]["losses"], abs=1e-5)
    for name in ("losses", "divergences"):
        assert adapter[name] == pytest.approx(arms["winner"][name], abs=1e-5)


def test_the_next_search_starts_from_the_record_it_left(
    finished: tuple[Path, list[dict]], options: list[str | Path], tmp_path: Path
) -> None:
    out, _ = finished
    winner = json.loads((out / "winner.json").read_text())["candidate"]
    known = [json.loads(line) for line in bandsearch("atlas", "--json").stdout.splitlines()]
    assert winner in [line["winner"] for line in known if line["data"] == "mine.jsonl"]
    assert "mine.jsonl" in bandsearch("atlas", "show", options[2]).stdout
    next_one = tmp_path / "next"
    changed = ["--out", next_one, "--prior", "atlas", "--objective", "retention", "--seed", "3"]
    done = bandsearch("search", *options[1:], *changed)
    assert done.returncode == 0, done.stderr
    suggested = json.loads((next_one / "prior.json").read_text())["suggestions"]
    assert all("On this model" in each["reason"] for each in suggested)
    trials = [json.loads(line) for line in (next_one / "trials.jsonl").read_text().splitlines()]
    # Under the atlas's name, or where a baseline happens to be the same under that one's.
    assert suggested[0]["candidate"] in [trial["candidate"] for trial in trials if trial["stage"] == "search"]
    confirmed = [trial for trial in trials if trial["stage"] == "confirm"]
    assert all(trial["divergence"] > 0 for trial in confirmed)


def test_going_on_with_a_complete_run_changes_nothing(
    finished: tuple[Path, list[dict]], options: list[str | Path]
) -> None:
    out, _ = finished
    before = {name: (out / name).read_bytes() for name in KEPT}
    spent = (out / "ledger.jsonl").read_bytes()
    assert bandsearch("resume", out).returncode == 0
    assert bandsearch(*options, "--out", out).returncode == 0
    assert {name: (out / name).read_bytes() for name in KEPT} == before
    assert (out / "ledger.jsonl").read_bytes() == spent


def test_another_spec_is_refused_by_name(finished: tuple[Path, list[dict]], options: list[str | Path]) -> None:
    done = bandsearch(*options, "--out", finished[0], "--seed", "5")
    assert done.returncode == 2
    assert "seed 0 -> 5" in done.stderr


def test_report_status_and_export_work_from_the_files(finished: tuple[Path, list[dict]], tmp_path: Path) -> None:
    out, _ = finished
    written = (out / "report.md").read_text()
    (out / "report.md").unlink()
    assert bandsearch("report", out).returncode == 0
    assert (out / "report.md").read_text() == written
    status = json.loads(bandsearch("status", out, "--json").stdout)
    assert status["next_command"] is None
    assert bandsearch("export", out, tmp_path / "copy").returncode == 0
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {file.name for file in (out / "adapter").iterdir()}


def test_a_finished_run_is_reported_where_its_devices_are_not(
    finished: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    spec = yaml.safe_load((copy / "spec.yaml").read_text())
    unit = "cpu" if torch.cuda.is_available() else "gpu"
    elsewhere = spec | {"budget": {"seconds": 28800.0, "unit": unit}}
    (copy / "spec.yaml").write_text(yaml.safe_dump(elsewhere))
    (copy / "report.html").unlink()
    done = bandsearch("resume", copy)
    assert done.returncode == 0, done.stderr
    assert (copy / "report.html").exists()
    # Its files are enough where model and data are not either.
    gone = {name: elsewhere[name] | {"name": "/nowhere"} for name in ("model", "data")}
    (copy / "spec.yaml").write_text(yaml.safe_dump(elsewhere | gone))
    (copy / "report.html").unlink()
    done = bandsearch("report", copy)
    assert done.returncode == 0, done.stderr
    assert "What the models answer" in (copy / "report.html").read_text()
    (copy / "spec.yaml").write_text(yaml.safe_dump(elsewhere))
    (copy / "evaluation.json").unlink()
    refused = bandsearch("resume", copy)
    assert refused.returncode == 2
    assert "visible" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_again_and_again_and_resumed_it_comes_out_the_same(
    finished: tuple[Path, list[dict]], options: list[str | Path], tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    records, begun = out / "trials.jsonl", command(*options, "--out", out)
    for blow, trained in ((signal.SIGINT, 2), (signal.SIGTERM, 4), (signal.SIGKILL, 6)):
        worker = subprocess.Popen(
            begun, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
        )
        while worker.poll() is None and not (records.exists() and records.read_text().count("\n") >= trained):
            time.sleep(0.02)
        worker.send_signal(blow)
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == (-signal.SIGKILL if blow is signal.SIGKILL else 130)
        if blow is not signal.SIGKILL:
            assert f"bandsearch resume {out}" in said
            assert "Traceback" not in said
        assert not (out / "winner.json").exists()
        begun = command("resume", out)
    assert bandsearch("resume", out).returncode == 0
    whole = finished[0]
    assert (out / "winner.json").read_bytes() == (whole / "winner.json").read_bytes()
    tensors = "adapter/adapter_model.safetensors"
    assert (out / tensors).read_bytes() == (whole / tensors).read_bytes()
    found = [json.loads(line) for line in records.read_text().splitlines()]
    trainings = [(trial["stage"], trial["number"], trial["seed"]) for trial in found]
    assert len(set(trainings)) == len(trainings)


def test_a_budget_too_small_names_one_that_works_and_leaves_nothing(options: list[str | Path], tmp_path: Path) -> None:
    given = options[: options.index("--trials")]
    done = bandsearch(*given, "--budget", "2s", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "The smallest that works is about" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
