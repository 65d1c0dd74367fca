"""Starting the engines of a job and measuring what they cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bandsearch.engine.devices import engine_layout
from bandsearch.engine.engine import Engine
from bandsearch.engine.machine import boot_id
from bandsearch.engine.measure import measure_costs
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.engine.team import form_teams
from bandsearch.evaluate.retention import seconds_per_text
from bandsearch.run.advice import with_advice
from bandsearch.run.job import Job
from bandsearch.run.planning import make_plan
from bandsearch.values.plan import Costs, Plan, SharedStep
from bandsearch.values.progress import Listener, Stop, Update, never

VALIDATION_EXAMPLES = 256
# So many times as long a confirmation tells enough more to give up the trainings of a shorter one.
WORTH_AGAIN = 2


def engine_setups(job: Job, data: Path, cache: Path | None = None) -> list[EngineSetup]:
    """One engine for every accelerator, or over the cores as the model's size has it. They share `cache`, and the file
    `data` that keeps the job's data set."""
    return [
        EngineSetup(
            source=job.source,
            data=str(data),
            dtype=job.spec.model.dtype,
            device=placement.device,
            threads=placement.threads,
            levers=job.spec.levers,
            cache_directory=None if cache is None else str(cache),
        )
        for placement in engine_layout(job.inventory, job.summary.parameters)
    ]


def start_engines(job: Job, listen: Listener, data: Path, cache: Path, stop: Stop = never) -> EnginePool:
    """The warm engines of a run; the base model is loaded when this returns. Raises LostEngineError once `stop()`."""
    if boot_id() is None:
        # Then nobody can tell whether what an earlier session kept has come through a power cut.
        shutil.rmtree(cache, ignore_errors=True)
    setups = engine_setups(job, data, cache)
    listen(Update(stage="load", message=f"{len(setups)} engine(s) for {job.source.slug} on {setups[0].device}"))
    pool = EnginePool.start(setups, stop)
    for note in pool.apply(0, _notes):
        listen(Update(stage="load", message=note))
    return pool


def _notes(engine: Engine) -> tuple[str, ...]:
    return engine.notes


def measured_plan(job: Job, pool: EnginePool, listen: Listener, *, spent: Callable[[], float]) -> Plan:
    """Time real work on all engines at once, so that what they take from each other is in the figures. `spent`: wall
    seconds since the engines were begun to be started; what the timing takes is part of it."""
    listen(Update(stage="plan", message="timing steps, validation and generation"))
    examples = min(VALIDATION_EXAMPLES, len(job.dataset.validation))
    with ThreadPoolExecutor(pool.size) as threads:
        measured: list[Costs] = list(
            threads.map(
                lambda index: pool.apply(index, measure_costs, job.spec.train.batch_size, examples), range(pool.size)
            )
        )
    packing = min(costs.packing for costs in measured)
    figures = set(Costs.model_fields) - {"shared_steps"}
    slowest: dict[str, Any] = {name: max(getattr(costs, name) for costs in measured) for name in figures}
    # Engines that found different packs go by the smallest, which costs a candidate no more than being alone.
    packed = max(
        min(costs.seconds_per_candidate_step * packing, costs.seconds_per_step * packing) for costs in measured
    )
    slowest |= {"packing": packing, "seconds_per_packed_step": packed}
    slowest["seconds_per_retention"] = pool.apply(0, seconds_per_text, job.retention.texts)
    slowest["shared_steps"] = _shared_steps(pool, job, slowest["seconds_per_step"], listen)
    slowest["load_seconds"] = spent()
    plan_of = partial(_plan_of, job, Costs(**slowest), pool.size)
    return with_advice(plan_of(job.wall_seconds), job.spec, plan_of)


def larger_plan(job: Job, plan: Plan, *, confirming: bool) -> Plan:
    """For a job that has been given more than when `plan` was made. Candidates go on to be read at its rungs.

    Where finalists are being trained, `confirming`, the others are trained as long, since losses after different
    numbers of steps do not compare. Only where the job pays for twice as many do all begin again.
    """
    plan_of = partial(_plan_of, job, plan.costs, plan.engines, job.wall_seconds, plan if plan.compares else None)
    larger = plan_of()
    if confirming and larger.confirm_steps < WORTH_AGAIN * plan.confirm_steps:
        return plan_of(confirming=True)
    return larger


def _plan_of(
    job: Job,
    costs: Costs,
    engines: int,
    wall_seconds: float | None,
    known: Plan | None = None,
    confirming: bool = False,
) -> Plan:
    return make_plan(
        job.spec,
        costs,
        train_examples=len(job.dataset.train),
        validation_examples=len(job.dataset.validation),
        test_examples=len(job.dataset.test),
        retention_texts=len(job.retention.texts),
        engines=engines,
        wall_seconds=wall_seconds,
        adapter_bytes=job.adapter_bytes,
        known=known,
        confirming=confirming,
    )


def _shared_steps(pool: EnginePool, job: Job, alone: float, listen: Listener) -> tuple[SharedStep, ...]:
    """Steps of one candidate on half of the engines, for two arms at a time, and on all of them, for one."""
    if not job.spec.levers.data_parallel:
        return ()
    batch_size, found = job.spec.train.batch_size, []
    for size in sorted({pool.size // 2, pool.size} - {0, 1}):
        teams = form_teams(pool, pool.size // size, size)
        if teams[0].size < size:
            for index in range(pool.size):
                # Engines that somebody ended did not meet either: asked for anything, they say so.
                pool.apply(index, _notes)
            message = f"{size} engines together do not train as one does alone; data_parallel is off"
            listen(Update(stage="plan", message=message))
            return ()
        with ThreadPoolExecutor(len(teams)) as threads:
            timed = threads.map(lambda team: team.time_step(batch_size, alone), teams)
            found.append(SharedStep(engines=size, seconds=max(timed)))
        for team in teams:
            team.part()
    return tuple(found)
