"""One optimiser step of several sessions at once, in as few passes as memory allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from bandsearch.data.dataset import Dataset
from bandsearch.engine.batches import WINDOW, examples_at
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.passes import Part, Passes
from bandsearch.engine.session import Session

Failure = DivergedError | OutOfMemoryError
Batches = Mapping[str, tuple[int, ...]]
Portion = list[tuple[Session, Sequence[int]]]

# A step's rows take time that grows with the data: all of an epoch of a million examples would be minutes.
STEPS_AVERAGED = 256


class Trainer:
    def __init__(self, passes: Passes, dataset: Dataset, *, length_grouping: bool) -> None:
        self._passes, self._train = passes, dataset.train
        self._window = WINDOW if length_grouping else 1
        self._lengths = tuple(len(example.input_ids) for example in dataset.train)
        self._supervised = tuple(sum(example.supervised[1:]) for example in dataset.train)
        self._rows: int | None = None

    def next_length(self, session: Session) -> int:
        """The longest sequence of the session's next step, in tokens."""
        return max(self._lengths[index] for index in self._examples(session))

    def mean_length(self, batch_size: int) -> float:
        """The longest sequence of a step, the mean over an epoch's steps or the first STEPS_AVERAGED, in tokens."""
        steps = range(max(1, min(STEPS_AVERAGED, len(self._lengths) // batch_size)))
        batches = (examples_at(step, self._lengths, batch_size, 0, self._window) for step in steps)
        return statistics.mean(max(self._lengths[index] for index in batch) for batch in batches)

    def step(self, sessions: Sequence[Session]) -> dict[str, Failure]:
        """Train each by a step; the failures by session name. Who fails changes nothing for the others."""
        batches = {session.name: self._examples(session) for session in sessions}
        try:
            losses = self._backward(sessions, batches)
        except OutOfMemoryError as error:
            for session in sessions:
                # Its replicas wait for a sum, and are not to train on without this one.
                session.gather(math.nan)
            return {session.name: error for session in sessions}
        failures: dict[str, Failure] = {}
        for session in sessions:
            try:
                session.update(session.gather(losses[session.name]))
            except DivergedError as error:
                failures[session.name] = error
        return failures

    def _examples(self, session: Session) -> tuple[int, ...]:
        fidelity = session.fidelity
        return tuple(examples_at(session.step, self._lengths, fidelity.batch_size, fidelity.seed, self._window))

    def _backward(self, sessions: Sequence[Session], batches: Batches) -> dict[str, float]:
        """Gradients of each session's mean loss per supervised token, and that loss; of replicas each one's part.

        Out of memory halves the rows of a pass and begins again: sessions are taken apart, then the rows of one are
        accumulated. Raises OutOfMemoryError where one row is too much.
        """
        tokens = {name: sum(self._supervised[index] for index in rows) for name, rows in batches.items()}
        while True:
            losses = dict.fromkeys(batches, 0.0)
            for portion in self._portions(sessions, batches):
                rows = sum(len(indices) for _, indices in portion)
                try:
                    found = self._passes.token_losses("train", [part_of(each, indices) for each, indices in portion])
                    means = [one.sum() / tokens[each.name] for (each, _), one in zip(portion, found, strict=True)]
                    torch.stack(means).sum().backward()
                except torch.OutOfMemoryError:
                    for session in sessions:
                        session.optimizer.zero_grad(set_to_none=True)
                    torch.cuda.empty_cache()
                    if rows == 1:
                        raise OutOfMemoryError("One example does not fit into memory.", "Lower --max-length.") from None
                    self._rows = max(1, rows // 2)
                    break
                for (session, _), mean in zip(portion, means, strict=True):
                    losses[session.name] += float(mean.detach())
            else:
                return losses

    def _portions(self, sessions: Sequence[Session], batches: Batches) -> list[Portion]:
        """What goes through the base together: sessions with equal numbers of rows, at most `_rows` rows in all."""
        portions: list[Portion] = []
        for session in sessions:
            rows = session.share(sorted(batches[session.name], key=lambda index: self._lengths[index]))
            limit = self._rows or max(1, len(rows) * len(sessions))
            last = portions[-1] if portions else []
            if last and len(last[0][1]) == len(rows) and (len(last) + 1) * len(rows) <= limit:
                last.append((session, rows))
            else:
                portions += [[(session, rows[begin : begin + limit])] for begin in range(0, len(rows), limit)]
        return portions


def part_of(session: Session | None, indices: Sequence[int]) -> Part:
    """These examples under the session's adapter, or under none."""
    if session is None:
        return Part(indices=tuple(indices), factors={}, scale=1.0, start=0)
    return Part(indices=tuple(indices), factors=session.factors, scale=session.candidate.scale, start=session.start)
