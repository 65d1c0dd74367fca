"""Losses and hidden states of a model as it stands, within the memory there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bandsearch.data.dataset import Encoded
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.probe import forward, gradients, hidden
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity


@pytest.fixture
def engine(load: Callable[[str], Engine]) -> Engine:
    loaded = load("llama")
    loaded.close()
    return loaded


def test_out_of_memory_halves_the_rows_and_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = engine.dataset.train[:9]
    expected = forward.mean_loss(engine.model, examples)
    whole, room = forward.token_losses, 2

    def scarce(model: Any, some: Sequence[Encoded]) -> torch.Tensor:
        if len(some) > room:
            raise torch.OutOfMemoryError
        return whole(model, some)

    monkeypatch.setattr(forward, "token_losses", scarce)
    assert forward.mean_loss(engine.model, examples) == pytest.approx(expected, abs=1e-5)
    room = 0
    with pytest.raises(OutOfMemoryError, match=r"One example does not fit into memory\. Lower --max-length"):
        forward.mean_loss(engine.model, examples)


def test_of_a_long_sequence_only_what_is_looked_at_is_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "MOST_TOKENS", 3)
    states = hidden.hidden_states(engine.model, engine.layout, engine.dataset.train[:2])
    assert len(states) == engine.layout.layer_count
    for each in (state for layer in states for state in layer):
        assert each.shape == (3, engine.layout.hidden_size)
        assert each.untyped_storage().nbytes() == each.numel() * each.itemsize


def test_gradients_of_an_example_that_does_not_fit_are_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, whole, tried = engine.dataset.train[:3], gradients.token_losses, Counter[int]()
    session = engine.admit(
        Candidate.full_depth(4, rank=4, alpha=4, learning_rate=1e-3), Fidelity(steps=1, batch_size=1, seed=0)
    )

    def scarce(model: Any, some: Sequence[Encoded]) -> torch.Tensor:
        tried[id(some[0])] += 1
        if tried[id(some[0])] <= lacking:
            raise torch.OutOfMemoryError
        return whole(model, some)

    monkeypatch.setattr(gradients, "token_losses", scarce)
    ran: list[object] = []
    engine.model.get_submodule(engine.layout.layers_path)[1].register_forward_hook(lambda *_: ran.append(None))
    inner = engine.model.get_submodule(f"{engine.layout.layers_path}.1.self_attn")
    inner.register_forward_hook(lambda *_: ran.append(None))

    def found(**options: bool) -> Any:
        tried.clear()
        ran.clear()
        with engine.attached(session) as model:
            return gradients.module_sensitivities(model, engine.layout, examples, **options)

    lacking = 0
    expected = found()
    assert len(ran) == 2 * len(examples)
    lacking = 1
    assert found() == expected
    assert len(ran) == 3 * len(examples)
    # Where the start has found that layers which run twice compute something else.
    with pytest.raises(OutOfMemoryError):
        found(recomputes=False)
    lacking = 2
    with pytest.raises(OutOfMemoryError, match=r"of \d+ tokens"):
        found()
