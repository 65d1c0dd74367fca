"""The engine's numbers against a plain loop of Transformers and PEFT, written without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from plain_batches import padded

from bandsearch.adapters.lora import initial_tensors, module_paths
from bandsearch.engine import session as session_module
from bandsearch.engine.batches import examples_at
from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity, Schedule

CANDIDATE = Candidate(bands=(Band(start=1, stop=3),), rank=4, alpha=8, targets=("all",), learning_rate=3e-3)
# Six steps of 20 rows pass the end of an epoch of 72.
FIDELITY = Fidelity(steps=6, batch_size=20, seed=3, schedule=Schedule.LINEAR, warmup_steps=2, validation_examples=10)
RATES = (0.001, 0.002, 0.003, 0.00225, 0.0015, 0.00075)


class Plain(NamedTuple):
    """`losses` and `norms` (of the gradients, before they are clipped) per step; the final factors."""

    losses: list[float]
    norms: list[float]
    factors: dict[str, torch.Tensor]
    model: Any


def plain_training(setup: EngineSetup, engine: Engine, clip: float = 1.0) -> Plain:
    from transformers import AutoConfig

    from bandsearch.models.config import auto_class

    base = auto_class(AutoConfig.from_pretrained(setup.source.location)).from_pretrained(
        setup.source.location, dtype=torch.float32
    )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=CANDIDATE.rank,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=list(module_paths(CANDIDATE, engine.layout)),
        fan_in_fan_out=engine.layout.transposed,
    )
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, initial_tensors(CANDIDATE, engine.layout, FIDELITY.seed))
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0, foreach=False)
    data = engine.dataset.train
    lengths = tuple(len(example.input_ids) for example in data)
    losses, norms = [], []
    for step, rate in enumerate(RATES):
        rows = examples_at(step, lengths, FIDELITY.batch_size, FIDELITY.seed)
        batch = padded([data[index] for index in rows], engine.tokenizer.pad_token_id)
        optimizer.param_groups[0]["lr"] = rate
        loss = model(**batch).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, clip)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return Plain(losses, norms, get_peft_model_state_dict(model, save_embedding_layers=False), model)


def assert_trained_alike(engine: Engine, session: str, plain: Plain) -> None:
    assert engine.train_losses(session) == pytest.approx(plain.losses, abs=1e-5)
    adapter = engine.adapter(session)
    assert adapter.keys() == plain.factors.keys()
    for name, factor in plain.factors.items():
        assert float((adapter[name] - factor).norm()) <= 1e-4 * float(factor.norm()), name


def plain_loss(model: Any, examples: Sequence[Any], pad: int) -> tuple[float, list[float]]:
    """(mean over tokens, mean of every example), one example at a time."""
    means, weights = [], []
    for example in examples:
        with torch.no_grad():
            means.append(float(model(**padded([example], pad)).loss))
        weights.append(sum(example.supervised))
    return sum(m * w for m, w in zip(means, weights, strict=True)) / sum(weights), means


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_training_is_what_a_plain_loop_does(
    family: str, setup_of: Callable[[str], EngineSetup], load: Callable[[str], Engine]
) -> None:
    engine = load(family)
    plain = plain_training(setup_of(family), engine)
    session = engine.admit(CANDIDATE, FIDELITY)
    point = engine.advance(session, FIDELITY.steps)
    assert_trained_alike(engine, session, plain)
    expected, means = plain_loss(plain.model, engine.dataset.validation[:10], engine.tokenizer.pad_token_id)
    assert point.loss == pytest.approx(expected, abs=1e-5)
    found = engine.losses("validation", session, 10)
    assert [example.loss for example in found] == pytest.approx(means, abs=1e-5)
    assert [example.supervised_tokens for example in found] == [
        sum(example.supervised) for example in engine.dataset.validation[:10]
    ]


def test_gradients_are_clipped_as_a_plain_loop_does(
    setup_of: Callable[[str], EngineSetup], load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = 1.1
    monkeypatch.setattr(session_module, "CLIP", clip)
    engine = load("llama")
    plain = plain_training(setup_of("llama"), engine, clip)
    assert min(plain.norms) < clip < max(plain.norms)
    session = engine.admit(CANDIDATE, FIDELITY)
    engine.advance(session, FIDELITY.steps)
    assert_trained_alike(engine, session, plain)


def test_the_base_is_whole_again_after_training(load: Callable[[str], Engine]) -> None:
    engine = load("qwen2")
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    session = engine.admit(CANDIDATE, FIDELITY)
    engine.advance(session, 3)
    with engine.attached(None) as model:
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
    engine.advance(session, 6)
    assert len(engine.train_losses(session)) == 6
