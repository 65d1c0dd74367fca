"""The one door to lm-eval."""

from __future__ import annotations

import copy
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
from bandsearch.evaluate.answers import THOUGHT
from bandsearch.evaluate.asking import Asking
from bandsearch.values.errors import DataError, UsageError
from bandsearch.values.value import Value

BUNDLED = Path(bandsearch.demo.__file__).parent / "lm_eval"
# What a deadline cannot take away, and how much longer the documents that follow may take.
FIRST_DOCUMENTS, MARGIN = 8, 1.5
AS_WRITTEN = Asking()


def check_tasks(tasks: tuple[str, ...], directory: str | None) -> None:
    """Raise UsageError for a task that lm-eval does not know, before anything is spent. Loads no data."""
    if tasks:
        _manager(tasks, directory)


class TaskScores(Value):
    """`metrics` by "task/metric". `cut`: tasks, and subtasks of such, of which time allowed only the first so many
    documents. `failures`: why a task has no metrics."""

    metrics: dict[str, float] = Field(default_factory=dict)
    cut: dict[str, int] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)

    def or_raise(self) -> TaskScores:
        """Raise DataError for the first task that failed."""
        for task, reason in self.failures.items():
            raise DataError(
                f"The task {task} could not be read: {reason}.",
                "Load its data once with a network, mend its file in --task-directory, or leave it out of --tasks.",
            )
        return self


def try_tasks(tasks: tuple[str, ...], directory: str | None, shots: int | None = None) -> None:
    """Load the data of every task and take one document of it from the prompt to the score, with no model.

    Raises UsageError for an unknown task and DataError for one that does not get through.
    """
    if not tasks:
        return
    from lm_eval.api.model import LM

    class Nobody(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [-1.0] * len(requests)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return ["0"] * len(requests)

    _scores(Nobody(), tasks, directory, 1, None, Asking(shots=shots)).or_raise()


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: tuple[str, ...],
    directory: str | None,
    limit: int | None,
    seconds: float | None = None,
    asking: Asking = AS_WRITTEN,
) -> TaskScores:
    """Scores on the first `limit` documents of each task, or on as many as `seconds` from now are enough for, at least
    FIRST_DOCUMENTS. Of several subtasks each has as many. A task that fails takes nothing from the others.

    Raises UsageError for an unknown task.
    """
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        language_model = HFLM(pretrained=model, batch_size=16, **_written_by(tokenizer, asking.template))
    return _scores(language_model, tasks, directory, limit, seconds, asking)


def _written_by(tokenizer: Any, template: str | None) -> dict[str, Any]:
    """What makes lm-eval write conversations as training does."""
    if template is None:
        return {"tokenizer": tokenizer}
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    # Chat templates write what stands in front of a text themselves.
    thought = {"think_end_token": THOUGHT} if THOUGHT in template else {}
    return {"tokenizer": tokenizer, "add_bos_token": False, **thought}


def _scores(
    language_model: Any,
    tasks: tuple[str, ...],
    directory: str | None,
    limit: int | None,
    seconds: float | None,
    asking: Asking,
) -> TaskScores:
    ends = None if seconds is None else time.monotonic() + seconds
    manager = _manager(tasks, directory)
    metrics: dict[str, float] = {}
    cut: dict[str, int] = {}
    failures: dict[str, str] = {}
    for position, task in enumerate(tasks):
        read = partial(_read, language_model, manager, asking, task)
        try:
            with _quiet():
                if ends is None:
                    found, documents = read(limit), None
                else:
                    # Finds the data, which may take longer than reading them.
                    read(1)
                    share = (ends - time.monotonic()) / (len(tasks) - position)
                    found, documents = _read_for(share, limit, read)
        except Exception as error:
            # Whatever a file of a task, or the code that it names, may raise.
            failures[task] = _reason(error)
            continue
        metrics |= _metrics(found)
        if documents is not None:
            cut |= dict.fromkeys((task, *found["results"]), documents)
    return TaskScores(metrics=metrics, cut=cut, failures=failures)


def _read(language_model: Any, manager: Any, asking: Asking, task: str, documents: int | None) -> Any:
    from lm_eval import simple_evaluate

    by_chat = asking.template is not None
    return simple_evaluate(
        model=language_model,
        tasks=[task],
        task_manager=manager,
        limit=documents,
        num_fewshot=asking.shots,
        apply_chat_template=by_chat,
        fewshot_as_multiturn=by_chat,
        # A base model's own list of them may lack what ends a turn.
        gen_kwargs={"eos_token_id": list(asking.stops)} if by_chat and asking.stops else None,
        bootstrap_iters=0,
        verbosity="ERROR",
    )


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}".rstrip(":. ")


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
