"""Losses of whole splits, for one session, several, or the bare base; and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandsearch.data.dataset import Dataset, Encoded, Examples
from bandsearch.engine.batches import tight_batches
from bandsearch.engine.memory import in_halves, within_memory
from bandsearch.engine.passes import Passes
from bandsearch.engine.session import Session
from bandsearch.engine.training import part_of
from bandsearch.values.plan import EVALUATION_ROWS

# The most rows of one forward pass for losses.
EVALUATION_PART = 32
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
    indices: Sequence[int],
) -> list[list[ExampleLoss]]:
    """Per session, the losses of these examples of a split, ascending."""
    examples: Examples = getattr(dataset, split)
    price = (PASS_TOKENS if passes.device.type == "cpu" else ACCELERATOR_PASS_TOKENS) // len(sessions)
    found: list[dict[int, ExampleLoss]] = [{} for _ in sessions]
    for begin in range(0, len(indices), EVALUATION_ROWS):
        some = indices[begin : begin + EVALUATION_ROWS]
        lengths = examples.lengths[list(some)].tolist()
        for places in tight_batches(lengths, price, EVALUATION_PART):
            rows = tuple(some[place] for place in places)
            for known, losses in zip(found, _losses(passes, dataset, split, sessions, rows), strict=True):
                known |= losses
    return [[losses[index] for index in sorted(losses)] for losses in found]


def _losses(
    passes: Passes, dataset: Dataset, split: str, sessions: Sequence[Session | None], rows: tuple[int, ...]
) -> list[dict[int, ExampleLoss]]:
    each = within_memory(partial(_token_losses, passes, split, sessions, rows))
    if each is None:
        torch.cuda.empty_cache()
        alone = [in_halves(partial(_token_losses, passes, split, [session]), rows) for session in sessions]
        each = [torch.cat([losses for (losses,) in parts]) for parts in alone]
    counts = torch.from_numpy(getattr(dataset, split).learned[list(rows)])
    owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
    results = []
    for losses in each:
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, losses.double().cpu())
        totals = zip(rows, (sums / counts).tolist(), counts.tolist(), strict=True)
        results.append({index: ExampleLoss(mean, count) for index, mean, count in totals})
    return results


def _token_losses(passes: Passes, split: str, sessions: Sequence[Session | None], rows: Sequence[int]) -> list[Tensor]:
    with torch.no_grad():
        return passes.token_losses(split, [part_of(session, tuple(rows)) for session in sessions])


def answer_length(tokenizer: Any, examples: Sequence[Encoded]) -> int:
    """Tokens that an answer to any of these may take: those of the longest reference that is judged, and a quarter
    more.

    0 where nothing is to be generated: for plain text, which has no prompts, and where most references are not judged,
    since the others are the short ones and say little of the task.
    """
    if not all(example.prompt_length for example in examples):
        return 0
    judged = [length for each in examples if (length := _reference_length(tokenizer, each)) <= LONGEST_ANSWER]
    if 2 * len(judged) < len(examples):
        return 0
    return min(LONGEST_ANSWER, max(judged, default=0) * 5 // 4 + 4)


def is_judged(tokenizer: Any, example: Encoded) -> bool:
    """Whether its reference is short enough to be generated whole: no answer could match a longer one."""
    return _reference_length(tokenizer, example) <= LONGEST_ANSWER


def _reference_length(tokenizer: Any, example: Encoded) -> int:
    # What is learned may be longer than the answer's text: a template opens it with an (empty) thought.
    return max(len(tokenizer(example.answer)["input_ids"]), len(example.input_ids) - example.prompt_length)


def greedy_answers(
    model: Any, tokenizer: Any, examples: Sequence[Encoded], stop_ids: Sequence[int], max_new_tokens: int | None = None
) -> list[str | None]:
    """Greedy continuations of the examples' prompts, None for those that are not judged; nothing for plain text.
    `max_new_tokens`: by default their `answer_length`, and nothing where that is 0."""
    longest = max_new_tokens or answer_length(tokenizer, examples)
    if not longest or not all(example.prompt_length for example in examples):
        return []
    stops = list(stop_ids) or None
    judged = [place for place, example in enumerate(examples) if is_judged(tokenizer, example)]
    texts: list[str | None] = [None] * len(examples)
    for begin in range(0, len(judged), EVALUATION_ROWS):
        places = judged[begin : begin + EVALUATION_ROWS]
        generate = partial(_generated, model, tokenizer.pad_token_id, stops, longest)
        for continued in in_halves(generate, [examples[place].prompt_ids for place in places]):
            for text in tokenizer.batch_decode(continued, skip_special_tokens=True):
                texts[places.pop(0)] = text
    return texts


def _generated(
    model: Any, pad: int, stops: list[int] | None, new_tokens: int, prompts: Sequence[NDArray[np.int32]]
) -> list[list[int]]:
    """Token ids behind each prompt."""
    device = model.get_input_embeddings().weight.device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.no_grad():
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            # A model's own defaults would have it sample, or avoid what it has said.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=pad,
            eos_token_id=stops,
        )
    found: list[list[int]] = output[:, width:].tolist()
    return found
