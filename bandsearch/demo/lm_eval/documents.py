"""Documents of the demo's lm-eval tasks; the YAML files beside this one call it."""

from __future__ import annotations

from typing import Any

from bandsearch.demo.tasks import COUNT, rows

DOCUMENTS = 100


def documents(task: str, **_: Any) -> dict[str, Any]:
    """A "test" split of 100 prompts with their completions that no row of `demo:<task>` shares."""
    from datasets import Dataset

    seen = {row["prompt"] for row in rows(task, COUNT)}
    # `words` has hardly more prompts than its data set takes, so all that a second seed finds is looked through.
    fresh = [row for row in rows(task, COUNT, seed=1) if row["prompt"] not in seen]
    return {"test": Dataset.from_list(fresh[:DOCUMENTS])}
