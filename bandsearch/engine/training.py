"""One optimiser step of several sessions at once, in as few passes as memory allows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from bandsearch.data.dataset import Dataset
from bandsearch.engine.batches import WINDOW, Lengths, examples_at
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.memory import given_room, too_much, within_memory
from bandsearch.engine.passes import Part, Passes
from bandsearch.engine.room import Room
from bandsearch.engine.session import Session

Failure = DivergedError | OutOfMemoryError
Batches = Mapping[str, tuple[int, ...]]
Portion = list[tuple[Session, Sequence[int]]]

# A step's rows take time that grows with the data: all of an epoch of a million examples would be minutes.
STEPS_AVERAGED = 256
MOMENTS = "What AdamW keeps of one more adapter"


class Trainer:
    def __init__(self, passes: Passes, dataset: Dataset, *, length_grouping: bool) -> None:
        self._passes, self._train = passes, dataset.train
        self._window = WINDOW if length_grouping else 1
        self._lengths = Lengths(dataset.train.lengths.tolist())
        self._supervised = tuple(dataset.train.learned.tolist())
        # Of a pass, and of a single row of which all that its gradients need is kept: of more its layers run twice.
        self._pass, self._row = Room(), Room()

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
        found: dict[str, Tensor | OutOfMemoryError] = {}
        for session in sessions:
            try:
                given_room(session.make_moments, MOMENTS)
            except OutOfMemoryError as error:
                found[session.name] = error
        ready = [session for session in sessions if session.name not in found]
        found |= self._backward(ready, {session.name: self._examples(session) for session in ready})
        failures: dict[str, Failure] = {n: each for n, each in found.items() if isinstance(each, OutOfMemoryError)}
        # The replicas of one that lacks memory wait for a sum, and are not to train on without it.
        losses = {name: each for name, each in found.items() if isinstance(each, Tensor)}
        readings = [torch.stack([*session.gather(losses.get(session.name)), session.clip()]) for session in sessions]
        # Read together: an accelerator has to be waited for once.
        for session, (loss, lacking, norm) in zip(sessions, torch.stack(readings).tolist(), strict=True):
            try:
                session.update(loss, lacking, norm)
            except (DivergedError, OutOfMemoryError) as error:
                failures.setdefault(session.name, error)
        return failures

    def try_longest(self, session: Session) -> None:
        """Take the gradients of the longest training example, and forget them. Raises OutOfMemoryError."""
        given_room(session.make_moments, MOMENTS)
        longest = max(range(len(self._lengths)), key=self._lengths.__getitem__)
        found = self._backward([session], {session.name: (longest,)})[session.name]
        session.optimizer.zero_grad(set_to_none=True)
        if isinstance(found, OutOfMemoryError):
            raise found

    def _examples(self, session: Session) -> tuple[int, ...]:
        fidelity = session.fidelity
        return tuple(examples_at(session.step, self._lengths, fidelity.batch_size, fidelity.seed, self._window))

    def _backward(self, sessions: Sequence[Session], batches: Batches) -> dict[str, Tensor | OutOfMemoryError]:
        """Gradients of each session's mean loss per supervised token, and that loss; of replicas each one's part.

        Out of memory has passes ask for less from then on and begins again: sessions are taken apart, then the rows of
        one are accumulated, and at last the layers run twice for a row that is too long by itself. A session for which
        even so it is too much has an error in place of a loss.
        """
        tokens = {name: sum(self._supervised[index] for index in rows) for name, rows in batches.items()}
        lacking: dict[str, Tensor | OutOfMemoryError] = {}
        while True:
            going = [session for session in sessions if session.name not in lacking]
            losses = {session.name: torch.zeros((), device=self._passes.device) for session in going}
            for portion in self._portions(going, batches):
                means = within_memory(partial(self._accumulate, portion, tokens))
                if means is None:
                    for session in sessions:
                        session.optimizer.zero_grad(set_to_none=True)
                    torch.cuda.empty_cache()
                    try:
                        self._take_less(portion)
                    except OutOfMemoryError as error:
                        lacking |= {session.name: error for session, _ in portion}
                    break
                for (session, _), mean in zip(portion, means, strict=True):
                    losses[session.name] += mean
            else:
                return lacking | losses

    def _accumulate(self, portion: Portion, tokens: Mapping[str, int]) -> list[Tensor]:
        """Gradients of a pass, and its sessions' losses."""
        parts = [part_of(each, rows) for each, rows in portion]
        kept = self._kept(portion)
        recompute = _rows(portion) == 1 and kept > self._row.most
        found = self._passes.token_losses("train", parts, recompute=recompute)
        means = [one.sum() / tokens[each.name] for (each, _), one in zip(portion, found, strict=True)]
        torch.stack(means).sum().backward()
        # Memory need not grow as tokens do, so what many short rows had says nothing of a long one.
        self._pass.fitted(0 if recompute else kept)
        self._row.fitted(kept if _rows(portion) == 1 and not recompute else 0)
        return [mean.detach() for mean in means]

    def _take_less(self, portion: Portion) -> None:
        """Have passes ask for less than `portion` did. Raises OutOfMemoryError where there is nothing less."""
        kept = self._kept(portion)
        if _rows(portion) > 1:
            self._pass.lacked(kept, kept // 2)
        elif kept > self._row.most or not self._passes.recomputes:
            raise too_much(self._padded_length(portion))
        else:
            self._row.lacked(kept, kept - 1)
            if kept <= self._pass.most:
                # Several rows are not to ask for as much either: rows are halved before any layer runs twice.
                self._pass.lacked(kept, kept - 1)

    def _portions(self, sessions: Sequence[Session], batches: Batches) -> list[Portion]:
        """What goes through the base together: sessions with equal numbers of rows, as much as memory is known to
        have room for."""
        portions: list[Portion] = []
        for session in sessions:
            rows = session.share(sorted(batches[session.name], key=lambda index: self._lengths[index]))
            last = portions[-1] if portions else []
            together = [*last, (session, rows)]
            if last and len(last[0][1]) == len(rows) and self._kept(together) <= self._pass.most:
                last.append((session, rows))
            else:
                portions += [[(session, some)] for some in self._pieces(session, rows)]
        return portions

    def _pieces(self, session: Session, rows: Sequence[int]) -> list[Sequence[int]]:
        """`rows`, ascending by length, cut so that there is room for each piece, or it is a single row."""
        pieces: list[Sequence[int]] = []
        begin = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or self._kept([(session, rows[begin : end + 1])]) > self._pass.most:
                pieces.append(rows[begin:end])
                begin = end
        return pieces

    def _kept(self, portion: Portion) -> int:
        """What is kept for the gradients of a pass, in tokens of a layer, padding included: nothing of the layers below
        a session's band. What comes on top of its layers is counted as one more, which is a little too much."""
        layers = sum(len(rows) * (self._passes.layer_count - session.start + 1) for session, rows in portion)
        return self._padded_length(portion) * layers

    def _padded_length(self, portion: Portion) -> int:
        return max((self._lengths[index] for _, rows in portion for index in rows), default=0)


def _rows(portion: Portion) -> int:
    return sum(len(rows) for _, rows in portion)


def part_of(session: Session | None, indices: Sequence[int]) -> Part:
    """These examples under the session's adapter, or under none."""
    if session is None:
        return Part(indices=tuple(indices), factors={}, scale=1.0, start=0)
    return Part(indices=tuple(indices), factors=session.factors, scale=session.candidate.scale, start=session.start)
