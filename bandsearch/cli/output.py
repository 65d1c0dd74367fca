"""Standard output for programs: JSON lines and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from bandsearch.run.outcome import RunOutcome
    from bandsearch.values.errors import BandsearchError
    from bandsearch.values.progress import Update

Say = Callable[[dict[str, Any]], None]


@contextmanager
def json_only() -> Iterator[Say]:
    """Yields what writes one object per line; everything else that is printed meanwhile goes to standard error."""
    sys.stdout.flush()
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        # Standard output is not a file here (a test, a notebook): replacing the object is enough.
        stream = sys.stdout
        with redirect_stdout(sys.stderr):
            yield lambda value: _write(stream, value)
        return
    # Libraries and child processes write to the descriptor, past sys.stdout.
    saved = os.dup(descriptor)
    os.dup2(2, descriptor)
    try:
        with os.fdopen(os.dup(saved), "w", encoding="utf-8") as stream, redirect_stdout(sys.stderr):
            yield lambda value: _write(stream, value)
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def _write(stream: TextIO, value: dict[str, Any]) -> None:
    try:
        stream.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        stream.flush()
    except BrokenPipeError:
        # What is buffered would fail again when the stream is closed.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def update_line(update: Update) -> dict[str, Any]:
    return {"event": "update", **update.model_dump(mode="json", exclude_none=True)}


def error_line(error: BandsearchError) -> dict[str, Any]:
    """Why a command ended, in the place of its result."""
    return {"event": "error", "type": type(error).__name__, "message": error.message, "remedy": error.remedy}


def outcome_line(outcome: RunOutcome) -> dict[str, Any]:
    """A finished run without the scores of single examples, which are in `evaluation.json`."""
    evaluation = outcome.evaluation
    return {
        "event": "result",
        "directory": str(outcome.directory),
        "adapter": str(outcome.adapter),
        "verdict": outcome.verdict,
        "serve_command": outcome.serve_command,
        "not_served": outcome.not_served,
        "spent_seconds": outcome.spent_seconds,
        "winner": outcome.winner.model_dump(mode="json", exclude={"finalists"}),
        "arms": [
            {
                "arm": arm.arm,
                "loss": arm.loss,
                "exact_match": arm.exact_match,
                "trainable_parameters": arm.trainable_parameters,
                "tasks": arm.tasks,
                "task_documents": arm.task_documents,
                "task_failures": arm.task_failures,
                "retention": None
                if arm.retention is None
                else {"loss": arm.retention.loss, "divergence": arm.retention.divergence},
            }
            for arm in evaluation.arms
        ],
        "task_form": evaluation.task_form,
        "comparisons": [comparison.model_dump(mode="json") for comparison in evaluation.comparisons],
    }
