"""Losses of whole splits, for one session, several, or the bare base; and greedy answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bandsearch.data.dataset import Dataset, Encoded
from bandsearch.engine.batches import tight_batches
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.engine.passes import Passes
from bandsearch.engine.session import Session
from bandsearch.engine.training import part_of

# Examples read between two looks at the clock, and the most rows of one forward pass among them.
EVALUATION_ROWS, EVALUATION_PART = 64, 32
# Tokens that take as long as what a forward pass costs beside its tokens: on a CPU 45 for layers of 512, 180 for layers
# of 128. An accelerator is busy only with many.
PASS_TOKENS, ACCELERATOR_PASS_TOKENS = 64, 1024
LONGEST_ANSWER = 256


class ExampleLoss(NamedTuple):
    """`loss`: mean nats per supervised token of one example."""

    loss: float
    supervised_tokens: int


def split_losses(
    passes: Passes,
    dataset: Dataset,
    split: str,
    sessions: Sequence[Session | None],
    limit: int | None,
    deadline: float | None = None,
) -> list[list[ExampleLoss]]:
    """Per session, the losses of the first `limit` examples of a split, in its order.

    Fewer, but at least one batch of 64, where `deadline` (seconds from now) comes first.
    """
    started = time.monotonic()
    examples: Sequence[Encoded] = getattr(dataset, split)[:limit]
    price = (PASS_TOKENS if passes.device.type == "cpu" else ACCELERATOR_PASS_TOKENS) // len(sessions)
    found: list[dict[int, ExampleLoss]] = [{} for _ in sessions]
    for begin in range(0, len(examples), EVALUATION_ROWS):
        if begin and deadline is not None and time.monotonic() - started > deadline:
            break
        lengths = [len(example.input_ids) for example in examples[begin : begin + EVALUATION_ROWS]]
        for places in tight_batches(lengths, price, EVALUATION_PART):
            rows = tuple(begin + place for place in places)
            for known, losses in zip(found, _losses(passes, dataset, split, sessions, rows), strict=True):
                known |= losses
    return [[losses[index] for index in sorted(losses)] for losses in found]


def _losses(
    passes: Passes, dataset: Dataset, split: str, sessions: Sequence[Session | None], rows: tuple[int, ...]
) -> list[dict[int, ExampleLoss]]:
    try:
        with torch.no_grad():
            each = passes.token_losses(split, [part_of(session, rows) for session in sessions])
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        if len(sessions) > 1:
            return [_losses(passes, dataset, split, [session], rows)[0] for session in sessions]
        if len(rows) == 1:
            raise OutOfMemoryError("One example does not fit into memory.", "Lower --max-length.") from None
        half = len(rows) // 2
        first, second = (_losses(passes, dataset, split, sessions, some)[0] for some in (rows[:half], rows[half:]))
        return [first | second]
    counts = torch.tensor([sum(getattr(dataset, split)[index].supervised[1:]) for index in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
    results = []
    for losses in each:
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, losses.double().cpu())
        totals = zip(rows, (sums / counts).tolist(), counts.tolist(), strict=True)
        results.append({index: ExampleLoss(mean, count) for index, mean, count in totals})
    return results


def greedy_answers(
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    split: str,
    limit: int,
    max_new_tokens: int | None = None,
    deadline: float | None = None,
) -> list[str]:
    """Greedy continuations of the first `limit` prompts; fewer where `deadline` (seconds from now) came first.

    Empty for plain text, which has no prompts. `max_new_tokens` is by default what the longest reference answer among
    them takes, and a quarter more.
    """
    started = time.monotonic()
    examples: Sequence[Encoded] = getattr(dataset, split)[:limit]
    if not all(example.prompt_ids for example in examples):
        return []
    if max_new_tokens is None:
        # What is learned may be longer than the answer's text: a template opens it with an (empty) thought.
        answers = [
            max(len(tokenizer(example.answer)["input_ids"]), len(example.input_ids) - len(example.prompt_ids))
            for example in examples
        ]
        max_new_tokens = min(LONGEST_ANSWER, max(answers, default=0) * 5 // 4 + 4)
    device = model.get_input_embeddings().weight.device
    texts: list[str] = []
    for begin in range(0, len(examples), EVALUATION_ROWS):
        if deadline is not None and time.monotonic() - started > deadline:
            break
        prompts = [example.prompt_ids for example in examples[begin : begin + EVALUATION_ROWS]]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=list(dataset.stop_ids) or None,
            )
        texts += tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return texts
