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
from bandsearch.data.template import CHAT_TEMPLATE
from bandsearch.engine.devices import DeviceInventory, devices
from bandsearch.engine.scoring import is_judged
from bandsearch.evaluate.asking import asking
from bandsearch.evaluate.lm_tasks import check_tasks, try_tasks
from bandsearch.models.aliases import DEMO, Source, resolve
from bandsearch.models.config import load_config
from bandsearch.models.loading import NF4, ModelSummary, fetch_weights, fingerprint, resolve_dtype, summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.search.candidates import require_fit
from bandsearch.values.candidate import Candidate
from bandsearch.values.environment import Environment
from bandsearch.values.errors import ModelError
from bandsearch.values.lineage import Lineage
from bandsearch.values.spec import RunSpec

# In which weights take less than in what they are loaded in by default, the more exact first.
SMALL_DTYPES = ("bf16", "nf4")
REPORTED_PACKAGES = ("torch", "transformers", "peft", "optuna", "ray", "datasets", "lm-eval")


@dataclass(frozen=True)
class Job:
    """`spec` has absolute paths; the examples of `dataset` are no longer than the model reads."""

    spec: RunSpec
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
    def lineage(self) -> Lineage:
        dtype, device = self.spec.model.dtype, "cuda" if self.inventory.gpus else "cpu"
        return Lineage(
            source=self.source,
            layout=self.summary.layout,
            data=self.dataset.name,
            template=None if self.dataset.template == CHAT_TEMPLATE else self.dataset.template,
            dtype=str(resolve_dtype("auto" if dtype == NF4 else dtype, device)).removeprefix("torch."),
            is_nf4=dtype == NF4,
            commit=None if self.source.is_local else load_config(self.source)._commit_hash,
        )

    @property
    def task_form(self) -> str:
        """How lm-eval's tasks are asked, in words; nothing where there are none."""
        return str(asking(self.spec, self.tokenizer, self.dataset)) if self.spec.tasks else ""

    def too_long(self, count: int) -> int:
        """How many of the first test examples have a reference answer too long to be judged."""
        asked = [example for example in self.dataset.test[:count] if example.prompt_length]
        return sum(not is_judged(self.tokenizer, example) for example in asked)

    @property
    def adapter_bytes(self) -> int:
        """The largest adapter the space allows, in fp32."""
        layout, rank = self.summary.layout, max(*self.spec.space.ranks, 16)
        largest = Candidate.full_depth(layout.layer_count, rank=rank, alpha=1, learning_rate=1)
        return 4 * trainable_parameters(largest, layout)


def prepare_job(spec: RunSpec, *, hold: bool = True, known: Path | None = None) -> Job:
    """Find the model, read the data, look at the machine. Raises before any directory is made or device is held.

    The data set is taken from the file `known` where that keeps what would come of it; the run that has written it is
    not refused for what has become of its tasks' data, as its evaluation says so.
    Without `hold` it does not have to have the budget's devices: a finished run holds none.
    """
    inventory = devices()
    held, wall = 1, None
    if spec.budget is not None and hold:
        held = spec.budget.devices(len(inventory.gpus), inventory.cores)
        wall = spec.budget.wall_seconds(len(inventory.gpus), inventory.cores)
    source = resolve(spec.model)
    summary = summarize(source)
    if hold:
        _require_memory(summary, spec.model.dtype, inventory)
    require_fit(spec.space, summary.layout)
    check_tasks(spec.tasks, spec.task_directory)
    tokenizer = load_tokenizer(source)
    dataset = prepare(spec.data, tokenizer, spec.seed, known, summary.context_length)
    if spec.tasks:
        # Refused here where it cannot be done.
        asking(spec, tokenizer, dataset)
    retention = retention_texts(spec.retention, tokenizer, dataset.max_length)
    if hold:
        if known is None or not known.exists():
            try_tasks(spec.tasks, spec.task_directory, spec.num_fewshot)
        # Before the budget is charged: of a large model they come for longer than a small budget lasts.
        fetch_weights(source)
    return Job(_anchored(spec, source), source, summary, tokenizer, dataset, retention, inventory, held, wall)


def _require_memory(summary: ModelSummary, dtype: str, inventory: DeviceInventory) -> None:
    """Raises ModelError where the weights alone, in `dtype`, are more than a device has room for: they need not be
    fetched."""
    device, room = "cpu", inventory.memory_bytes
    holder = f"this machine has {room / 1e9:.1f} GB of memory"
    if inventory.gpus:
        device, room, total = "cuda", inventory.gpu_free_bytes, inventory.gpu_memory_bytes
        holder = f"a GPU here has {room / 1e9:.1f} GB of memory free, of {total / 1e9:.1f} GB"
    needed = summary.weight_bytes(dtype, device)
    if needed <= room:
        return
    fitting = [name for name in SMALL_DTYPES if summary.weight_bytes(name, device) <= room]
    less = f"Keep the base in fewer bits (--dtype {fitting[0]}), or use a smaller model." if fitting else ""
    if inventory.gpus and needed <= inventory.gpu_memory_bytes:
        # What takes the rest may be gone in a moment, or be on this GPU alone.
        others = "See with `nvidia-smi` what else is there and end it, or name free GPUs in CUDA_VISIBLE_DEVICES."
        less = f"{others} {less}".strip()
    raise ModelError(
        f"The weights of {summary.source} take {needed / 1e9:.1f} GB, and {holder}.",
        less or "Use a smaller model; not even 4 bits (--dtype nf4) would do.",
    )


def environment(job: Job) -> Environment:
    versions = {"bandsearch": __version__} | {name: importlib.metadata.version(name) for name in REPORTED_PACKAGES}
    lineage = job.lineage
    machine = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerators": ", ".join(job.inventory.gpus) or "none",
        "cores": str(job.inventory.cores),
        "model": job.source.location if not job.source.is_local else job.source.slug,
        **({"commit": lineage.commit} if lineage.commit else {}),
        "dtype": lineage.precision,
        "data": f"{job.dataset.name} ({job.dataset.shape}), fingerprint {job.dataset.fingerprint}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Environment(
        facts=machine | versions,
        source=job.source,
        model=fingerprint(job.source),
        data=job.dataset.fingerprint,
        data_notes=job.dataset.notes,
        lineage=lineage,
    )


def _anchored(spec: RunSpec, source: Source) -> RunSpec:
    """With absolute paths, so that a run goes on from whatever directory it is resumed in."""

    def anchored(name: str) -> str:
        path = Path(name).expanduser()
        return str(path.absolute()) if path.exists() else name

    def absolute(name: str | None) -> str | None:
        return None if name is None else anchored(name)

    model = spec.model.name if source.slug == DEMO or not source.is_local else source.location
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"name": model}),
            "data": spec.data.model_copy(
                update={
                    "name": anchored(spec.data.name),
                    "also": tuple(map(anchored, spec.data.also)),
                    "validation": absolute(spec.data.validation),
                    "test": absolute(spec.data.test),
                }
            ),
            "retention": absolute(spec.retention),
            "task_directory": absolute(spec.task_directory),
            # Made when it is first written.
            "atlas": None if spec.atlas is None else str(Path(spec.atlas).expanduser().absolute()),
        }
    )


def default_directory(spec: RunSpec, source: Source) -> Path:
    """`results/<model>-<data>-<date>`, with a number behind where that is taken by another run. Of more than two
    sources two are named, and how many more there are."""
    names = [os.path.basename(name) for name in spec.data.names]
    said = "-".join([*names[:2], *([f"and-{len(names) - 2}-more"] if len(names) > 2 else [])])
    data = re.sub(r"[^A-Za-z0-9.]+", "-", said).strip("-").lower()
    base = Path("results") / f"{source.slug}-{data}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    attempt, path = 1, base
    while path.exists():
        attempt += 1
        path = base.with_name(f"{base.name}-{attempt}")
    return path
