"""The evaluation of what is handed over: every arm under its name, with the size of its adapter."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.adapters.lora import initial_tensors
from bandsearch.run import handover
from bandsearch.rundir import RunDirectory
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Arm, ArmScores, Choice, Evaluation, ExampleScore, Winner
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.progress import silent
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


def evaluated(winner: Winner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    def scored(pool: Any, home: Any, job: Any, plan: Any, checkpoints: dict[Arm, Path | None], *_: Any) -> Any:
        return {
            arm: ArmScores(arm=arm, examples=(ExampleScore(loss=loss, supervised_tokens=1),) * 3)
            for loss, arm in enumerate(checkpoints)
        }

    monkeypatch.setattr(handover, "score_arms", scored)
    monkeypatch.setattr(handover, "model_card", lambda *_: "")
    monkeypatch.setattr(handover, "write_card", lambda *_: None)
    job: Any = SimpleNamespace(
        retention=SimpleNamespace(name="neutral prompts"),
        summary=SimpleNamespace(layout=None),
        source=None,
        dataset=SimpleNamespace(name="mine", template="none", chat_template="", test=()),
    )
    nothing: Any = None
    return handover.evaluate_arms(nothing, RunDirectory(tmp_path), job, nothing, winner, lambda: math.inf, silent, str)


def test_arms_are_named_with_the_sizes_of_their_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluated(WINNER, tmp_path, monkeypatch)
    assert [(arm.arm, arm.loss, arm.trainable_parameters) for arm in evaluation.arms] == [
        ("base", 0.0, 0),
        ("full_depth", 1.0, 20),
        ("winner", 2.0, 10),
    ]


def test_a_baseline_that_wins_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = WINNER.model_copy(update={"candidate": BASELINE, "trainable_parameters": 20})
    evaluation = evaluated(same, tmp_path, monkeypatch)
    assert [(arm.arm, arm.loss, arm.trainable_parameters) for arm in evaluation.arms] == [
        ("base", 0.0, 0),
        ("full_depth", 1.0, 20),
        ("winner", 1.0, 20),
    ]


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
