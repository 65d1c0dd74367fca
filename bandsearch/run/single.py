"""The stages on their own: what `plan`, `probe` and `eval` do without a whole run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from bandsearch.adapters.factors import plain_factors
from bandsearch.adapters.limits import chat_template_of
from bandsearch.adapters.merge import mount_adapter
from bandsearch.adapters.verify import FOR_VLLM_ALONE, require_sound
from bandsearch.data.kept import keep
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import LostEngineError, UnplannedError
from bandsearch.engine.measure import measure_costs
from bandsearch.evaluate.arms import compare, score_arm
from bandsearch.evaluate.asking import asking
from bandsearch.evaluate.lm_tasks import run_tasks
from bandsearch.evaluate.retention import measure_retention
from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.run.engines import engine_setups, measured_plan, start_engines
from bandsearch.run.job import Job, prepare_job
from bandsearch.run.plainly import score_plainly
from bandsearch.rundir import disk_errors, write_atomically
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import InterruptedRunError
from bandsearch.values.evaluation import Arm, ArmScores, Evaluation
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Stop, Update, never, silent
from bandsearch.values.spec import RunSpec


def plan_only(spec: RunSpec, listen: Listener = silent, stop: Stop = never) -> Plan:
    """Measure this machine and say what the budget buys. Spends and writes nothing. Raises InterruptedRunError once
    `stop()` is true, and UnplannedError where an engine is lost."""
    job = prepare_job(spec)
    started = time.monotonic()
    with _kept(job) as data:
        try:
            # Engines are ended without a chance to tidy up.
            pool = start_engines(job, listen, data, data.parent / "prefix", stop)
            try:
                with pool.abandoned_once(stop):
                    return measured_plan(job, pool, listen, spent=lambda: time.monotonic() - started)
            finally:
                pool.stop()
        except LostEngineError as error:
            if stop():
                raise InterruptedRunError("Stopped; nothing was spent or written.") from error
            raise UnplannedError(error.message, error.remedy) from error


def probe_only(spec: RunSpec, file: Path | None = None, listen: Listener = silent) -> SensitivityProfile:
    """Probe without a search, in this process and without a deadline; write the profile to `file` if one is given."""
    job = prepare_job(spec)
    engine = _engine(job)
    costs = measure_costs(engine, spec.train.batch_size, min(64, len(job.dataset.validation)))
    settings = ProbeSettings(seed=spec.seed, batch_size=spec.train.batch_size, space=spec.space, costs=costs)
    profile = run_probe(engine, settings, listen)
    if file is not None:
        with disk_errors(file.parent, "Free some space, or choose another --out."):
            write_atomically(file, profile.model_dump_json(indent=2) + "\n")
    return profile


def evaluate_adapter(
    adapter: Path, spec: RunSpec, examples: int | None = None, listen: Listener = silent
) -> Evaluation:
    """Score the base and an adapter on the test split of `spec.data`, on `spec.tasks`, and on what is forgotten.

    `examples`: at most so many of the test split.

    Both are scored as adapters are trained, beside the weights: LoRA as a run scores it, other methods, such as DoRA,
    by PEFT's own passes.

    Raises AdapterError for an adapter that cannot be loaded whole on this model.
    """
    job = prepare_job(spec)
    require_sound(adapter, job.summary.layout, passing=FOR_VLLM_ALONE)
    factors = plain_factors(adapter, job.summary.layout)
    trained_with = chat_template_of(adapter)
    if trained_with and trained_with.read_text(encoding="utf-8") != job.dataset.chat_template:
        message = f"this adapter was trained with another chat template: --template {trained_with} asks in it"
        listen(Update(stage="evaluate", message=message))
    engine = _engine(job)
    count = min(examples or len(engine.dataset.test), len(engine.dataset.test))
    scores = _beside(engine, factors, job, count, listen) if factors else _mounted(engine, adapter, job, count, listen)
    return Evaluation(
        arms=tuple(scores),
        comparisons=compare(scores, pairs=((Arm.ADAPTER, Arm.BASE),)),
        retention_texts=job.retention.name,
        task_form=job.task_form,
        too_long=job.too_long(count),
    )


def _beside(
    engine: Engine, factors: tuple[Candidate, dict[str, Tensor]], job: Job, count: int, listen: Listener
) -> list[ArmScores]:
    """Base and a LoRA adapter, scored by the engine."""
    scores = []
    for arm, session in ((Arm.BASE, None), (Arm.ADAPTER, engine.adopt(*factors))):
        listen(Update(stage="evaluate", message=f"scoring {arm} on {count} examples"))
        found = score_arm(engine, session, arm, test_examples=count, generated_examples=count)
        with engine.attached(session) as model:
            scores.append(_with_model(found, model, engine, job, listen))
    return scores


def _mounted(engine: Engine, adapter: Path, job: Job, count: int, listen: Listener) -> list[ArmScores]:
    """Base and any adapter, both scored by the same plain passes."""
    engine.close()
    mounted = mount_adapter(engine.model, adapter)
    listen(Update(stage="evaluate", message="this adapter is more than LoRA, so PEFT computes it"))
    scores = []
    for arm in (Arm.BASE, Arm.ADAPTER):
        listen(Update(stage="evaluate", message=f"scoring {arm} on {count} examples"))
        off = arm is Arm.BASE
        with mounted.disable_adapter() if off else nullcontext():
            model = mounted.get_base_model() if off else mounted
            found = score_plainly(model, engine.tokenizer, engine.dataset, arm, count)
            scores.append(_with_model(found, model, engine, job, listen))
    return scores


def _with_model(scores: ArmScores, model: Any, engine: Engine, job: Job, listen: Listener) -> ArmScores:
    """What is read of an arm's model as it stands: what it forgets, and the tasks."""
    spec, texts = job.spec, job.retention.texts
    listen(Update(stage="evaluate", message=f"forgetting on {len(texts)} texts ({job.retention.name})"))
    scores = scores.model_copy(update={"retention": measure_retention(model, engine.tokenizer.pad_token_id, texts)})
    if not spec.tasks:
        return scores
    asked = asking(spec, engine.tokenizer, engine.dataset)
    read = run_tasks(model, engine.tokenizer, spec.tasks, spec.task_directory, spec.task_limit, asking=asked).or_raise()
    return scores.model_copy(update={"tasks": read.metrics})


@contextmanager
def _kept(job: Job) -> Iterator[Path]:
    """The file of the job's data set, in a temporary folder of its own."""
    with TemporaryDirectory(prefix="bandsearch-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data.arrow"
        with disk_errors(Path(folder), "Free some space, or set TMPDIR to a folder on another disk."):
            keep(job.dataset, data)
        yield data


def _engine(job: Job) -> Engine:
    """In this process. What it has opened stays its own once the file has lost its name."""
    with _kept(job) as data:
        return Engine.load(engine_setups(job, data)[0])
