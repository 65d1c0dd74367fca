"""A job: a specification resolved on this machine, before anything is written or charged."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bandsearch import __version__
from bandsearch.adapters.lora import trainable_parameters
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.data.retention import RetentionTexts, retention_texts
from bandsearch.engine.devices import DeviceInventory, devices
from bandsearch.evaluate.lm_tasks import check_tasks
from bandsearch.models.aliases import Source, resolve
from bandsearch.models.loading import ModelSummary, load_tokenizer, summarize
from bandsearch.values.candidate import Candidate
from bandsearch.values.spec import DataSpec, RunSpec
from bandsearch.values.value import Value

REPORTED_PACKAGES = ("torch", "transformers", "peft", "optuna", "ray", "datasets", "lm-eval")


class Environment(Value):
    """The content of `environment.json`: what a reader needs to judge or repeat the figures."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Job:
    """`data` is the specification's, with examples no longer than the model reads."""

    spec: RunSpec
    data: DataSpec
    source: Source
    summary: ModelSummary
    tokenizer: Any
    dataset: Dataset
    retention: RetentionTexts
    inventory: DeviceInventory
    devices: int
    wall_seconds: float | None

    @property
    def budget_seconds(self) -> float | None:
        return self.spec.budget.seconds if self.spec.budget else None

    @property
    def adapter_bytes(self) -> int:
        """The largest adapter the space allows, in fp32."""
        layout, rank = self.summary.layout, max(*self.spec.space.ranks, 16)
        largest = Candidate.full_depth(layout.layer_count, rank=rank, alpha=1, learning_rate=1)
        return 4 * trainable_parameters(largest, layout)


def prepare_job(spec: RunSpec) -> Job:
    """Find the model, read the data, look at the machine. Raises before any directory is made or device is held."""
    inventory = devices()
    held, wall = 1, None
    if spec.budget is not None:
        held = spec.budget.devices(len(inventory.gpus), inventory.cores)
        wall = spec.budget.wall_seconds(len(inventory.gpus), inventory.cores)
    source = resolve(spec.model)
    summary = summarize(source)
    check_tasks(spec.tasks, spec.task_directory)
    tokenizer = load_tokenizer(source)
    longest = min(spec.data.max_length, summary.context_length or spec.data.max_length)
    data = spec.data.model_copy(update={"max_length": longest})
    dataset = prepare(data, tokenizer, spec.seed)
    retention = retention_texts(spec.retention, tokenizer, longest)
    return Job(spec, data, source, summary, tokenizer, dataset, retention, inventory, held, wall)


def environment(job: Job) -> Environment:
    versions = {"bandsearch": __version__} | {name: importlib.metadata.version(name) for name in REPORTED_PACKAGES}
    machine = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerators": ", ".join(job.inventory.gpus) or "none",
        "cores": str(job.inventory.cores),
        "model": job.source.location if not job.source.is_local else job.source.slug,
        "data": f"{job.dataset.name} ({job.dataset.shape}), fingerprint {job.dataset.fingerprint}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Environment(facts=machine | versions)


def default_directory(spec: RunSpec, source: Source) -> Path:
    """`results/<model>-<data>-<date>`, with a number behind where that is taken by another run."""
    data = re.sub(r"[^A-Za-z0-9.]+", "-", os.path.basename(spec.data.name)).strip("-").lower()
    base = Path("results") / f"{source.slug}-{data}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    attempt, path = 1, base
    while path.exists():
        attempt += 1
        path = base.with_name(f"{base.name}-{attempt}")
    return path
