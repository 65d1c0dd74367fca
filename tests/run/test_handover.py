"""The evaluation of the arms: kept arm by arm, and within the time there is."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.adapters.lora import initial_tensors
from bandsearch.run import handover
from bandsearch.rundir import RunDirectory
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.errors import BandsearchError
from bandsearch.values.evaluation import ArmScores, Choice, Evaluation, ExampleScore, Winner
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.progress import Update
from bandsearch.values.source import Source

BASELINE = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=1e-3)
WINNER = Winner(
    candidate=BASELINE.model_copy(update={"rank": 2}),
    role=Role.SEARCHED,
    trainable_parameters=10,
    choice=Choice.BEATS_BASELINE,
    reason="It is ahead.",
    baseline=BASELINE,
    baseline_parameters=20,
    finalists=(),
)


class Pool:
    """One engine; `fails_at` an arm it dies."""

    size = 1

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.asked: list[tuple[str, float | None]] = []

    def apply(self, index: int, work: Any, checkpoint: Path | None, arm: str, *rest: Any) -> Any:
        self.asked.append((arm, rest[-1]))
        if arm == self.fails_at:
            raise BandsearchError("An engine died.")
        example = ExampleScore(loss=len(self.asked), supervised_tokens=1)
        return ArmScores(arm=arm, examples=(example,) * 3), {"gsm8k": 16}


def evaluated(home: RunDirectory, pool: Pool, heard: list[Update], left: float = math.inf) -> Evaluation:
    job: Any = SimpleNamespace(
        spec=None,
        retention=SimpleNamespace(texts=(), name="neutral prompts"),
        summary=SimpleNamespace(layout=None),
        source=None,
        dataset=SimpleNamespace(name="mine", template="none", chat_template=""),
    )
    plan: Any = SimpleNamespace(retention_texts=0)
    return handover.evaluate_arms(pool, home, job, plan, WINNER, lambda: left, heard.append)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(handover, "model_card", lambda *_: "")
    monkeypatch.setattr(handover, "write_card", lambda *_: None)
    (tmp_path / "scratch").mkdir()
    return RunDirectory(tmp_path)


def test_what_was_scored_before_a_kill_is_not_scored_again_and_the_rest_has_all_the_time(home: RunDirectory) -> None:
    heard: list[Update] = []
    killed = Pool(fails_at="winner")
    with pytest.raises(BandsearchError, match="An engine died"):
        evaluated(home, killed, heard, left=90.0)
    assert killed.asked == [("base", 30.0), ("full_depth", 45.0), ("winner", 90.0)]
    pool = Pool()
    evaluation = evaluated(home, pool, heard, left=60.0)
    assert pool.asked == [("winner", 60.0)]
    assert [(arm.arm, arm.loss, arm.trainable_parameters) for arm in evaluation.arms] == [
        ("base", 1.0, 0),
        ("full_depth", 2.0, 20),
        ("winner", 1.0, 10),
    ]
    assert [update.message for update in heard if "documents" in update.message] == [
        f"gsm8k: time allowed 16 documents for {arm}" for arm in ("base", "full depth", "winner")
    ]


def test_without_a_budget_there_is_no_deadline(home: RunDirectory) -> None:
    pool = Pool()
    evaluated(home, pool, [])
    assert pool.asked == [("base", None), ("full_depth", None), ("winner", None)]


def test_the_template_that_trained_goes_with_the_adapter_and_into_the_command_that_serves_it(tmp_path: Path) -> None:
    linear = Linear(name="self_attn.q_proj", group="attention", in_features=6, out_features=5)
    layout = Layout(family="olmo2", layers_path="model.layers", layer_count=4, hidden_size=6, linears=(linear,))
    tensors = {name: tensor + 1 for name, tensor in initial_tensors(BASELINE, layout, 0).items()}
    pool: Any = SimpleNamespace(apply=lambda *_: (BASELINE, tensors))
    job: Any = SimpleNamespace(
        summary=SimpleNamespace(layout=layout),
        source=Source(location="org/base", is_local=False, slug="base"),
        dataset=SimpleNamespace(name="mine", template="plain, {prompt}", chat_template="{{ messages }}\n"),
    )
    home = RunDirectory(tmp_path)
    handover.export_winner(pool, home, job, WINNER.model_copy(update={"candidate": BASELINE}))
    assert (home.adapter / "chat_template.jinja").read_text() == "{{ messages }}\n"
    assert f"--chat-template {home.adapter}/chat_template.jinja" in (home.adapter / "README.md").read_text()
