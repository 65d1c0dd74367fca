"""What the probe trains belongs to the space that is searched afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from costs import costs_of

from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.space import SearchSpace

COSTS = costs_of(1)


class Admitted(Exception):  # noqa: N818
    pass


class Engine:
    """Shows the first candidate that it is to train."""

    layout = SimpleNamespace(layer_count=4)
    dataset = SimpleNamespace(train=(), validation=())

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        raise Admitted(candidate)


@pytest.mark.parametrize(("written", "alpha"), [(24.0, 24.0), ("2r", 16.0), ("0.5r", 4.0)])
def test_its_alpha_is_the_one_of_the_space(written: Any, alpha: float) -> None:
    space = SearchSpace(name="mine", alpha=written)
    with pytest.raises(Admitted) as caught:
        run_probe(Engine(), ProbeSettings(seed=0, batch_size=16, space=space, costs=COSTS))  # type: ignore[arg-type]
    (candidate,) = caught.value.args
    assert (candidate.rank, candidate.alpha) == (8, alpha)
