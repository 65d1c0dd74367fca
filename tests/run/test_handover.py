"""The evaluation of what is handed over: every arm under its name, with the size of its adapter."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bandsearch.adapters.lora import initial_tensors
from bandsearch.run import handover, stages
from bandsearch.run.retrain import Training, best_checkpoint
from bandsearch.rundir import RunDirectory
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Arm, ArmScores, Choice, Evaluation, ExampleScore, Winner
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.lineage import Lineage
from bandsearch.values.progress import silent
from bandsearch.values.source import Source
from bandsearch.values.trial import Point

BASELINE = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=1e-3)
EXAMPLE = SimpleNamespace(prompt_ids=np.arange(2), answer="yes")
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
    def scoring(pool: Any, home: Any, job: Any, plan: Any, checkpoints: dict[Arm, Path | None], *_: Any) -> Any:
        found = {
            arm: ArmScores(arm=arm, examples=(ExampleScore(loss=loss, supervised_tokens=1),) * 3)
            for loss, arm in enumerate(checkpoints)
        }
        return SimpleNamespace(scores=lambda: found)

    monkeypatch.setattr(handover, "Scoring", scoring)
    monkeypatch.setattr(handover, "model_card", lambda *_: "")
    monkeypatch.setattr(handover, "write_card", lambda *_: None)
    job: Any = SimpleNamespace(
        retention=SimpleNamespace(name="neutral prompts"),
        task_form="",
        too_long=lambda count: 0,
        lineage=None,
        summary=SimpleNamespace(layout=None),
        source=None,
        tokenizer=SimpleNamespace(decode=str),
        dataset=SimpleNamespace(name="mine", template="none", chat_template="", test=(EXAMPLE,) * 20),
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
    # Of the test split only three examples were scored.
    assert [sample.prompt for sample in evaluation.samples] == ["[0, 1]"] * 3


def test_a_baseline_that_wins_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = WINNER.model_copy(update={"candidate": BASELINE, "trainable_parameters": 20})
    evaluation = evaluated(same, tmp_path, monkeypatch)
    assert [(arm.arm, arm.loss, arm.trainable_parameters) for arm in evaluation.arms] == [
        ("base", 0.0, 0),
        ("full_depth", 1.0, 20),
        ("winner", 1.0, 20),
    ]


@pytest.mark.parametrize("ahead", [Arm.WINNER, Arm.FULL_DEPTH])
def test_what_came_of_the_final_trainings_is_kept_with_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: Arm
) -> None:
    home = RunDirectory(tmp_path)
    lowered = WINNER.candidate.model_copy(update={"learning_rate": 1e-4})
    points = tuple(Point(steps=steps, loss=1 / steps, seconds=1.0) for steps in (10, 20))
    came = {
        Arm.WINNER: Training(arm=Arm.WINNER, candidate=lowered, points=points, best_steps=20, complete=True),
        Arm.FULL_DEPTH: Training(
            arm=Arm.FULL_DEPTH, candidate=BASELINE, points=points[:1], best_steps=10, complete=True
        ),
    }

    def settled(pool: Any, folder: Any, winner: Winner, plan: Any) -> Winner:
        return winner.model_copy(update={"candidate": BASELINE, "reason": "It fell behind."})

    monkeypatch.setattr(stages, "train_arms", lambda teams, arms, *_: {arm: came[arm] for arm in arms})
    monkeypatch.setattr(stages, "settle", (lambda *given: given[2]) if ahead is Arm.WINNER else settled)
    monkeypatch.setattr(stages, "form_teams", lambda *_: [])
    monkeypatch.setattr(stages, "spare_evaluation", lambda *_: 0.0)
    costs = SimpleNamespace(seconds_per_validation=1.0, step_on=lambda _: SimpleNamespace(engines=1))
    at: Any = SimpleNamespace(
        home=SimpleNamespace(winner=home.path / "winner.json", full=home.full, write=home.write),
        job=SimpleNamespace(spec=SimpleNamespace(seed=0)),
        ledger=SimpleNamespace(stage=lambda _: nullcontext()),
        wall_left=lambda *_: lambda: math.inf,
        plan=SimpleNamespace(full_steps=40, engines=1, costs=costs, evaluated=2, final_fidelity=lambda *_: None),
        pool=None,
        listen=silent,
        stop=None,
        heed=lambda: None,
    )
    winner = stages.retrain(at, WINNER.model_copy(update={"training_steps": 40}))
    assert home.read(home.winner, Winner) == winner
    assert winner.as_trained(WINNER.candidate) == lowered
    assert winner.as_trained(BASELINE) == BASELINE
    assert winner.steps_trained == (20 if ahead is Arm.WINNER else 10)
    # Taken up again where it was broken off after that; a baseline that is ahead is not trained beside itself.
    assert stages.retrain(at, winner).trainings == winner.trainings


@pytest.mark.parametrize("better", [0, 1])
def test_of_two_rates_of_full_depth_the_one_that_validation_prefers_is_kept(tmp_path: Path, better: int) -> None:
    """By however little: there is no habit to fall back to."""
    slower = BASELINE.model_copy(update={"learning_rate": 3e-4})
    pair = (BASELINE, slower)
    both = WINNER.model_copy(
        update={"candidate": BASELINE, "baseline": slower, "choice": Choice.UNCOMPARED, "tolerance": 0.01}
    )
    losses = {best_checkpoint(tmp_path, each): 0.5 + 1e-6 * (index != better) for index, each in enumerate(pair)}

    def apply(index: int, work: Any, arm: Arm, checkpoint: Path, limit: int) -> ArmScores:
        return ArmScores(arm=arm, examples=(ExampleScore(loss=losses[checkpoint], supervised_tokens=1),) * 3)

    pool: Any = SimpleNamespace(apply=apply)
    plan: Any = SimpleNamespace(validation_examples=3)
    kept = handover.settle(pool, tmp_path, both, plan)
    assert kept.candidate == kept.baseline == pair[better]
    assert kept.choice is Choice.UNCOMPARED
    # Taken up again there is nothing left to decide.
    assert handover.settle(pool, tmp_path, kept, plan) == kept


def test_the_template_that_trained_goes_with_the_adapter_and_into_the_command_that_serves_it(tmp_path: Path) -> None:
    linear = Linear(name="self_attn.q_proj", group="attention", in_features=6, out_features=5)
    layout = Layout(family="olmo2", layers_path="model.layers", layer_count=4, hidden_size=6, linears=(linear,))
    tensors = {name: tensor + 1 for name, tensor in initial_tensors(BASELINE, layout, 0).items()}
    pool: Any = SimpleNamespace(apply=lambda *_: tensors)
    source = Source(location="org/base", is_local=False, slug="base")
    job: Any = SimpleNamespace(
        summary=SimpleNamespace(layout=layout),
        source=source,
        lineage=Lineage(source=source, layout=layout, data="mine", template="plain, {prompt}"),
        dataset=SimpleNamespace(name="mine", template="plain, {prompt}", chat_template="{{ messages }}\n"),
    )
    home = RunDirectory(tmp_path)
    handover.export_winner(pool, home, job, WINNER.model_copy(update={"candidate": BASELINE}))
    assert (home.adapter / "chat_template.jinja").read_text() == "{{ messages }}\n"
    assert f"--chat-template {home.adapter}/chat_template.jinja" in (home.adapter / "README.md").read_text()
