"""Sessions do not see one another, and go on where they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import NARROW, SHORT, WIDE, Trained, trained

from bandsearch.engine import scoring
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import DivergedError
from bandsearch.engine.measure import measure_costs
from bandsearch.values.errors import BandsearchError, RunDirectoryError
from bandsearch.values.fidelity import Fidelity


def same(left: Trained, right: Trained) -> bool:
    return (
        left[:2] == right[:2]
        and left[2].keys() == right[2].keys()
        and all(torch.equal(left[2][name], right[2][name]) for name in left[2])
    )


@pytest.fixture(scope="module")
def alone(load: Callable[[str], Engine]) -> Trained:
    """NARROW in an engine that does nothing else."""
    return trained(load("qwen2"))


def test_after_another_candidate(engine: Engine, alone: Trained) -> None:
    trained(engine, WIDE)
    assert same(trained(engine), alone)
    assert same(trained(engine), alone)


def test_interleaved(engine: Engine, alone: Trained) -> None:
    first, other = engine.admit(NARROW, SHORT), engine.admit(WIDE, SHORT)
    for steps in (1, 2, 4, 6):
        engine.advance(other, steps)
        point = engine.advance(first, steps)
        engine.losses("test", None, 2)
    assert same((engine.train_losses(first), point.loss, engine.adapter(first)), alone)
    engine.evict(first)
    engine.evict(other)


def test_measuring_leaves_no_trace(load: Callable[[str], Engine], alone: Trained) -> None:
    engine = load("qwen2")
    measure_costs(engine, 8, 16)
    assert same(trained(engine), alone)


def test_a_checkpoint_goes_on_in_another_engine(
    load: Callable[[str], Engine],
    engine: Engine,
    alone: Trained,
    tmp_path: Path,
) -> None:
    session = engine.admit(NARROW, SHORT)
    engine.advance(session, 2)
    engine.checkpoint(session, tmp_path / "state")
    engine.advance(session, 3)
    engine.checkpoint(session, tmp_path / "state")
    engine.evict(session)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    other = load("qwen2")
    restored = other.restore(tmp_path / "state")
    assert len(other.train_losses(restored)) == 3
    point = other.advance(restored, SHORT.steps)
    assert same((other.train_losses(restored), point.loss, other.adapter(restored)), alone)


def test_a_checkpoint_before_the_first_step_and_of_a_detached_session(engine: Engine, tmp_path: Path) -> None:
    session = engine.admit(NARROW, SHORT)
    engine.checkpoint(session, tmp_path / "state")
    restored = engine.restore(tmp_path / "state")
    assert engine.train_losses(restored) == []
    first, second = engine.adapter(session), engine.adapter(restored)
    assert all(torch.equal(first[name], second[name]) for name in first)
    engine.evict(session)
    engine.evict(restored)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.admit(NARROW, SHORT)
    engine.checkpoint(session, tmp_path / "state")
    engine.advance(session, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        engine.checkpoint(session, tmp_path / "state")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    assert engine.train_losses(engine.restore(tmp_path / "state")) == []


@pytest.mark.parametrize("left", [None, 0, 7, 500])
def test_a_checkpoint_that_a_power_cut_has_torn_is_told_with_what_to_delete(
    engine: Engine, tmp_path: Path, left: int | None
) -> None:
    path = tmp_path / "training" / "state"
    session = engine.admit(NARROW, SHORT)
    engine.checkpoint(session, path)
    engine.evict(session)
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunDirectoryError, match=f"cannot be read.*Delete the folder {path.parent}"):
        engine.restore(path)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_divergence_is_told_and_leaves_the_engine_usable(engine: Engine, alone: Trained, rate: float) -> None:
    session = engine.admit(NARROW.model_copy(update={"learning_rate": rate}), Fidelity(steps=30, batch_size=8, seed=0))
    told: DivergedError | None = None
    try:
        point = engine.advance(session, 30)
    except DivergedError as error:
        told = error
    if told is not None:
        assert isinstance(told, BandsearchError)
        assert told.remedy
    else:
        # fp32 and norms may carry a large rate through; what comes out is then far above where it began.
        assert point.loss > engine.train_losses(session)[0]
    engine.evict(session)
    assert same(trained(engine), alone)


def test_evicting_what_is_not_there_is_harmless(engine: Engine) -> None:
    engine.evict("nobody")
    session = engine.admit(NARROW, SHORT)
    engine.evict(session)
    engine.evict(session)


def test_a_deadline_ends_training_early_and_it_goes_on(engine: Engine, alone: Trained) -> None:
    session = engine.admit(NARROW, SHORT)
    point = engine.advance(session, SHORT.steps, deadline=0.0)
    assert 1 <= point.steps < SHORT.steps
    point = engine.advance(session, SHORT.steps)
    assert point.steps == SHORT.steps
    assert same((engine.train_losses(session), point.loss, engine.adapter(session)), alone)
    engine.evict(session)


def test_rungs_beyond_the_fidelity_train_no_further(engine: Engine) -> None:
    session = engine.admit(NARROW, SHORT)
    assert engine.advance(session, 1000).steps == SHORT.steps
    before = engine.adapter(session)
    engine.advance(session, 1000)
    after = engine.adapter(session)
    assert all(torch.equal(before[name], after[name]) for name in before)
    engine.evict(session)


def test_a_closed_engine_gives_its_model_to_another(load: Callable[[str], Engine], alone: Trained) -> None:
    first = load("qwen2")
    first.advance(first.admit(WIDE, SHORT), 2)
    first.close()
    second = Engine(first.model, first.layout, first.tokenizer, first.dataset)
    assert same(trained(second), alone)


def test_answers_are_greedy_whatever_the_model_s_own_defaults_are(load: Callable[[str], Engine]) -> None:
    engine = load("qwen2")
    plain = engine.generate("test", None, 4, max_new_tokens=12)
    for name, value in {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True}.items():
        setattr(engine.model.generation_config, name, value)
    assert engine.generate("test", None, 4, max_new_tokens=12) == plain


def test_answers_that_do_not_fit_together_are_given_one_after_the_other(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    expected = engine.generate("test", None, 5, max_new_tokens=8)
    usual, rows = engine.model.generate, list[int]()

    def small(**kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("full")
        return usual(**kwargs)

    monkeypatch.setattr(engine.model, "generate", small)
    assert engine.generate("test", None, 5, max_new_tokens=8) == expected
    assert rows == [5, 2, 3, 1, 2]


def test_what_is_longer_than_an_answer_may_get_is_not_judged(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    examples = engine.dataset.test[:5]
    lengths = [scoring._reference_length(engine.tokenizer, example) for example in examples]
    assert len(set(lengths)) > 1
    monkeypatch.setattr(scoring, "LONGEST_ANSWER", max(lengths) - 1)
    answers = engine.generate("test", None, 5, max_new_tokens=4)
    assert [answer is None for answer in answers] == [length == max(lengths) for length in lengths]
    # Of the few that would be left over most of the task is not seen.
    monkeypatch.setattr(scoring, "LONGEST_ANSWER", min(lengths) - 1)
    assert engine.generate("test", None, 5) == []
    assert measure_costs(engine, 4, 4).seconds_per_generation == 0
