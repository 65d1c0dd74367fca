"""The one door to lm-eval."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import bandsearch.demo
from bandsearch.values.errors import DataError, UsageError

BUNDLED = Path(bandsearch.demo.__file__).parent / "lm_eval"


def check_tasks(tasks: tuple[str, ...], directory: str | None) -> None:
    """Raise UsageError for a task that lm-eval does not know, before anything is spent. Loads no data."""
    if tasks:
        _manager(tasks, directory)


def run_tasks(
    model: Any, tokenizer: Any, tasks: tuple[str, ...], directory: str | None, limit: int | None
) -> dict[str, float]:
    """Metrics of the tasks by "task/metric", from the first `limit` documents of each.

    Raises UsageError for an unknown task and DataError for a data set that cannot be loaded.
    """
    manager = _manager(tasks, directory)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        with _quiet():
            results = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                verbosity="ERROR",
            )
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"The data of {', '.join(tasks)} cannot be loaded ({str(error).splitlines()[0]}).",
            "Load it once with a network, or give local tasks with --task-directory.",
        ) from error
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in results["results"].items()
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
