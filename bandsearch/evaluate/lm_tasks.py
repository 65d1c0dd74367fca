"""The one door to lm-eval."""

from __future__ import annotations

import difflib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

import bandsearch.demo
from bandsearch.values.errors import DataError, UsageError
from bandsearch.values.value import Value

BUNDLED = Path(bandsearch.demo.__file__).parent / "lm_eval"
# What a deadline cannot take away, and how much longer the documents that follow may take.
FIRST_DOCUMENTS, MARGIN = 8, 1.5


def check_tasks(tasks: tuple[str, ...], directory: str | None) -> None:
    """Raise UsageError for a task that lm-eval does not know, before anything is spent. Loads no data."""
    if tasks:
        _manager(tasks, directory)


class TaskScores(Value):
    """`metrics` by "task/metric". `cut`: tasks, and subtasks of such, of which time allowed only the first so many
    documents."""

    metrics: dict[str, float] = Field(default_factory=dict)
    cut: dict[str, int] = Field(default_factory=dict)


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: tuple[str, ...],
    directory: str | None,
    limit: int | None,
    seconds: float | None = None,
) -> TaskScores:
    """Scores on the first `limit` documents of each task, or on as many as `seconds` from now are enough for, at least
    FIRST_DOCUMENTS. Of several subtasks each has as many.

    Raises UsageError for an unknown task and DataError for a data set that cannot be loaded.
    """
    manager, ends = _manager(tasks, directory), None if seconds is None else time.monotonic() + seconds
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    def read(names: tuple[str, ...], documents: int | None) -> Any:
        return simple_evaluate(
            model=language_model,
            tasks=list(names),
            task_manager=manager,
            limit=documents,
            bootstrap_iters=0,
            verbosity="ERROR",
        )

    try:
        with _quiet():
            language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
            if ends is None:
                return TaskScores(metrics=_metrics(read(tasks, limit)))
            metrics: dict[str, float] = {}
            cut: dict[str, int] = {}
            for position, task in enumerate(tasks):
                # Finds the data, which may take longer than reading them.
                read((task,), 1)
                share = (ends - time.monotonic()) / (len(tasks) - position)
                found, documents = _read_for(share, limit, partial(read, (task,)))
                metrics |= _metrics(found)
                if documents is not None:
                    cut |= dict.fromkeys((task, *found["results"]), documents)
            return TaskScores(metrics=metrics, cut=cut)
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"The data of {', '.join(tasks)} cannot be loaded ({str(error).splitlines()[0]}).",
            "Load it once with a network, or give local tasks with --task-directory.",
        ) from error


def _read_for(seconds: float, limit: int | None, read: Callable[[int], Any]) -> tuple[Any, int | None]:
    """What `read` finds on as many documents as there is time for, and how many, None where that is all of them.

    Grows by powers of two, so that arms which take about as long are read on the same documents.
    """
    ends, documents = time.monotonic() + seconds, FIRST_DOCUMENTS
    while True:
        started = time.monotonic()
        documents = documents if limit is None else min(documents, limit)
        found = read(documents)
        took = time.monotonic() - started
        if documents == limit or all(n["effective"] == n["original"] for n in found["n-samples"].values()):
            return found, None
        growth = (ends - time.monotonic()) / (MARGIN * took)
        if growth < 2:
            return found, documents
        documents *= 2 ** int(math.log2(growth))


def _metrics(found: Any) -> dict[str, float]:
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and not metric.startswith(("alias", "sample")) and "_stderr" not in metric
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard error: lm-eval draws bars, and asks git about the folder, which complains past Python."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        logger.setLevel(level)


def _manager(tasks: tuple[str, ...], directory: str | None) -> Any:
    """A task manager that knows all of `tasks`: from local folders alone where they suffice, which takes no time."""
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in (BUNDLED, *([Path(directory)] if directory else [])) if folder.is_dir()]
    for defaults in (False, True):
        manager = TaskManager(include_path=folders, include_defaults=defaults, verbosity="ERROR")
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    close = difflib.get_close_matches(unknown[0], manager.all_tasks, 3)
    raise UsageError(
        f"lm-eval knows no task {unknown[0]!r}.",
        f"Did you mean {', '.join(close)}?" if close else "List them with `lm-eval ls tasks`.",
    )
