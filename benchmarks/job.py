"""A job: what a process of the naive or the strong arm is told to train, and what it answers."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.value import Value

# The exit status of a process whose passes do not fit into the accelerator's memory.
OUT_OF_MEMORY = 77


class Job(Value):
    """`examples` is a file of encoded splits, `order` the training rows of every optimiser step.

    `pass_rows` rows go through the model at once; a step accumulates the gradients of as many passes as it takes.
    """

    model: str
    dtype: str
    device: str
    threads: int
    candidates: tuple[Candidate, ...]
    fidelity: Fidelity
    rungs: tuple[int, ...]
    examples: str
    order: tuple[tuple[int, ...], ...]
    pass_rows: int


class Trained(Value):
    """One trial. `seconds` are its own, without what its process took to start; `change` is the largest |B|."""

    candidate: Candidate
    seconds: float
    train_losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    change: float


class Answer(Value):
    trials: tuple[Trained, ...]
    peak_memory_bytes: int


class Example(NamedTuple):
    input_ids: list[int]
    supervised: list[bool]


class Examples(NamedTuple):
    train: list[Example]
    validation: list[Example]
    pad: int


def read_examples(path: str) -> Examples:
    content = json.loads(Path(path).read_text())
    train, validation = ([Example(*pair) for pair in content[split]] for split in ("train", "validation"))
    return Examples(train, validation, content["pad"])


def peak_memory(device: str) -> int:
    """Of this process: bytes on the accelerator, or resident bytes on the CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(work: Callable[[Job], Answer]) -> None:
    """The main function of a process: read the job named first, write the answer to the file named second."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        reply = work(job)
    except torch.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)
    Path(sys.argv[2]).write_text(reply.model_dump_json())
