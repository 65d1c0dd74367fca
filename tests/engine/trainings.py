"""Two candidates and a fidelity that take moments, and what training them leaves."""

from torch import Tensor

from bandsearch.engine.engine import Engine
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity

NARROW = Candidate(bands=(Band(start=1, stop=3),), rank=4, alpha=8, targets=("all",), learning_rate=3e-3)
WIDE = Candidate(bands=(Band(start=0, stop=4),), rank=2, alpha=4, targets=("attention",), learning_rate=1e-3)
SHORT = Fidelity(steps=6, batch_size=8, seed=3, warmup_steps=2, validation_examples=10)

Trained = tuple[list[float], float, dict[str, Tensor]]


def trained(engine: Engine, candidate: Candidate = NARROW, fidelity: Fidelity = SHORT) -> Trained:
    """Losses of every step, the last validation loss and the factors."""
    session = engine.admit(candidate, fidelity)
    point = engine.advance(session, fidelity.steps)
    result = engine.train_losses(session), point.loss, engine.adapter(session)
    engine.evict(session)
    return result
