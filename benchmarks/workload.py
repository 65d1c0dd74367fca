"""A workload: a model and a data set on disk, and how every arm is to train on them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Dataset, prepare
from bandsearch.data.kept import keep
from bandsearch.engine.batches import examples_at
from bandsearch.engine.devices import DeviceInventory, devices, engine_layout
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import ModelSummary, summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity, Schedule
from bandsearch.values.levers import Levers
from bandsearch.values.spec import DataSpec, ModelSpec
from benchmarks.candidates import frozen_candidates
from benchmarks.costs import Volume
from benchmarks.data import write_rows
from benchmarks.job import Job
from benchmarks.model import build_model
from benchmarks.scale import Scale

LONGEST_TOKENS = 1024
DATA = "data.arrow"


@dataclass(frozen=True)
class Workload:
    """`folder` holds the model, the data and whatever the arms leave behind."""

    scale: Scale
    folder: Path
    device: str
    inventory: DeviceInventory
    summary: ModelSummary
    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase

    @property
    def layer_count(self) -> int:
        return self.summary.layout.layer_count

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return frozen_candidates(self.layer_count, self.scale.candidates, self.scale.rates)

    @property
    def proxy(self) -> Fidelity:
        return Fidelity(
            steps=self.scale.steps,
            batch_size=self.scale.batch_size,
            seed=self.scale.seed,
            warmup_steps=min(10, self.scale.rungs[0] // 10),
            validation_examples=self.scale.validation_examples,
        )

    @property
    def full(self) -> Fidelity:
        return self.proxy.model_copy(update={"steps": self.scale.full_steps, "schedule": Schedule.LINEAR})

    @cached_property
    def lengths(self) -> list[int]:
        return self.dataset.train.lengths.tolist()

    def order(self, fidelity: Fidelity) -> tuple[tuple[int, ...], ...]:
        """The training rows of every step, the same for all arms."""
        return tuple(
            tuple(examples_at(step, self.lengths, fidelity.batch_size, fidelity.seed)) for step in range(fidelity.steps)
        )

    def volume(self, fidelity: Fidelity) -> Volume:
        """What a trial of this fidelity works through, evaluations at every rung included."""
        validation = self.dataset.validation[: fidelity.validation_examples]
        rows = [row for step in self.order(fidelity) for row in step]
        trained = [self.dataset.train[row] for row in rows]
        once = [*validation, *(self.dataset.train[row] for row in set(rows))]
        return Volume(
            layer_parameters=sum(linear.in_features * linear.out_features for linear in self.summary.layout.linears),
            layers=self.layer_count,
            head_parameters=self.summary.layout.hidden_size * self.summary.vocabulary,
            trained_tokens=sum(len(example.input_ids) for example in trained),
            trained_positions=sum(example.learned for example in trained),
            read_tokens=len(self.scale.rungs) * sum(len(example.input_ids) for example in validation),
            read_positions=len(self.scale.rungs) * sum(example.learned for example in validation),
            distinct_tokens=sum(len(example.input_ids) for example in once),
        )

    def setups(self, cache: Path, levers: Levers | None = None) -> list[EngineSetup]:
        """The engines a run of bandsearch would start here."""
        return [
            EngineSetup(
                source=self.summary.source,
                data=str(self.folder / DATA),
                dtype=self.scale.dtype,
                device=placement.device,
                threads=placement.threads,
                levers=levers or Levers(),
                cache_directory=str(cache),
            )
            for placement in engine_layout(self.inventory, self.summary.parameters)
        ]

    def job(self, candidates: tuple[Candidate, ...], threads: int | None = None, *, shuffled: bool = False) -> Job:
        """`shuffled` takes the rows in an order that does not look at their lengths."""
        return Job(
            model=self.summary.source.location,
            dtype=self.scale.dtype,
            device=self.device,
            threads=threads or self.inventory.cores,
            candidates=candidates,
            fidelity=self.proxy,
            rungs=self.scale.rungs,
            examples=str(self._examples),
            pass_rows=self.scale.batch_size,
            order=self._shuffled(self.proxy) if shuffled else self.order(self.proxy),
        )

    def _shuffled(self, fidelity: Fidelity) -> tuple[tuple[int, ...], ...]:
        numbers, rows = random.Random(fidelity.seed), []
        while len(rows) < fidelity.steps * fidelity.batch_size:
            rows += numbers.sample(range(len(self.lengths)), len(self.lengths))
        size = fidelity.batch_size
        return tuple(tuple(rows[step * size : (step + 1) * size]) for step in range(fidelity.steps))

    @cached_property
    def _examples(self) -> Path:
        path = self.folder / "examples.json"
        content = {
            split: [(example.input_ids.tolist(), example.supervised.tolist()) for example in examples]
            for split, examples in (("train", self.dataset.train), ("validation", self.dataset.validation))
        }
        path.write_text(json.dumps(content | {"pad": self.tokenizer.pad_token_id}))
        return path


def make_workload(scale: Scale, folder: Path, device: str) -> Workload:
    """Build the model (or take the embedded one) and the data in `folder`, which must not exist."""
    folder.mkdir(parents=True)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if scale.shape is not None:
        build_model(scale.shape, folder / "model", dtype=scale.dtype, device=kind)
    source = resolve(ModelSpec(name="demo" if scale.shape is None else str(folder / "model")))
    if scale.task is None:
        write_rows(folder / "rows.jsonl", scale.rows, scale.lengths)
    name = str(folder / "rows.jsonl") if scale.task is None else f"demo:{scale.task}"
    data = DataSpec(name=name, max_length=LONGEST_TOKENS)
    tokenizer = load_tokenizer(source)
    inventory = devices()
    if kind == "cpu":
        inventory = inventory.model_copy(update={"gpus": ()})
    elif inventory.gpus:
        # One process per trial keeps one device busy, so one device is what is compared.
        inventory = inventory.model_copy(update={"gpus": inventory.gpus[:1]})
    dataset = prepare(data, tokenizer, scale.seed)
    keep(dataset, folder / DATA)
    return Workload(
        scale=scale,
        folder=folder,
        device=device,
        inventory=inventory,
        summary=summarize(source),
        dataset=dataset,
        tokenizer=tokenizer,
    )
