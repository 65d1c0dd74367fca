"""The strong arm: `python -m benchmarks.strong JOB ANSWER` loads the model once and trains one trial after another.

What a careful person writes in plain PyTorch and PEFT: length-grouped batches, SDPA attention, all cores as threads,
adapters attached and detached, validation sorted by length in batches as small as those of training. Every step runs
the whole network and the whole head.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bandsearch.adapters.lora import attach, detach, tensors_of
from bandsearch.models.families import layout_of
from bandsearch.values.candidate import Candidate
from benchmarks.job import Answer, Example, Examples, Job, Trained, answer, peak_memory, read_examples


def train(job: Job) -> Answer:
    torch.set_num_threads(job.threads)
    warnings.filterwarnings("ignore")
    # As in our arm: where it is preferred, it makes a plan for every new shape, which no plain arm is to pay for.
    torch.backends.cuda.enable_cudnn_sdp(False)
    examples = read_examples(job.examples)
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=getattr(torch, job.dtype),
        attn_implementation="sdpa",
        device_map=None if job.device == "cpu" else {"": job.device},
    )
    model.requires_grad_(False)
    _warm_up(model, job, examples)
    trials = tuple(_trial(model, candidate, job, examples) for candidate in job.candidates)
    return Answer(trials=trials, peak_memory_bytes=peak_memory(job.device))


def _warm_up(model: Any, job: Job, examples: Examples) -> None:
    """A step that counts as start: what a process does only once is no part of a trial."""
    peft = attach(model, job.candidates[0], layout_of(model), job.fidelity.seed)
    _backward(peft, [examples.train[index] for index in job.order[0]], examples.pad, job)
    detach(peft)


def _trial(model: Any, candidate: Candidate, job: Job, examples: Examples) -> Trained:
    started = time.perf_counter()
    fidelity = job.fidelity
    peft = attach(model, candidate, layout_of(model), fidelity.seed)
    factors = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, weight_decay=0.0, fused=True)
    validation = examples.validation[: fidelity.validation_examples]
    losses, readings = [], []
    for step, rows in enumerate(job.order):
        optimizer.param_groups[0]["lr"] = candidate.learning_rate * fidelity.learning_rate_factor(step)
        losses.append(_backward(peft, [examples.train[index] for index in rows], examples.pad, job))
        nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step + 1 in job.rungs:
            readings.append(_validated(peft, validation, examples.pad, job))
    change = max(float(tensor.abs().max()) for name, tensor in tensors_of(peft).items() if "lora_B" in name)
    detach(peft)
    return Trained(
        candidate=candidate,
        seconds=time.perf_counter() - started,
        train_losses=tuple(torch.stack(losses).tolist()),
        validation_losses=tuple(readings),
        change=change,
    )


def _backward(model: Any, examples: Sequence[Example], pad: int, job: Job) -> Tensor:
    """The mean loss per supervised token of a step; its gradients are accumulated."""
    tokens = sum(sum(example.supervised) for example in examples)
    total = torch.zeros((), device=job.device)
    for begin in range(0, len(examples), job.pass_rows):
        part = examples[begin : begin + job.pass_rows]
        share = sum(sum(example.supervised) for example in part) / tokens
        loss = _loss(model, part, pad, job.device) * share
        loss.backward()
        total += loss.detach()
    return total


def _validated(model: Any, examples: Sequence[Example], pad: int, job: Job) -> float:
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    total, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(ordered), job.pass_rows):
            part = ordered[begin : begin + job.pass_rows]
            tokens = sum(sum(example.supervised) for example in part)
            total += float(_loss(model, part, pad, job.device)) * tokens
            count += tokens
    return total / count


def _loss(model: Any, examples: Sequence[Example], pad: int, device: str) -> Tensor:
    length = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), length), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        tokens, wanted = torch.tensor(example.input_ids), torch.tensor(example.supervised)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)][wanted] = tokens[wanted]
    kind = torch.device(device).type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        loss: Tensor = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device), use_cache=False
        ).loss
    return loss


if __name__ == "__main__":
    answer(train)
