"""The Python interface: the commands that run, look and check as functions.

    from bandsearch import api

    outcome = api.run(api.specify("demo", budget="10min"))
    print(outcome.verdict, outcome.winner.candidate, outcome.adapter)

`specify` is quick; the others import torch and ray when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bandsearch.data.chat_templates import load_template
from bandsearch.data.reading import look_for, look_for_file
from bandsearch.demo.corpus import CORPUS
from bandsearch.demo.tasks import TASKS
from bandsearch.models.aliases import DEMO, resolve
from bandsearch.spaces import load_space
from bandsearch.values.budget import Budget
from bandsearch.values.errors import UsageError
from bandsearch.values.levers import Levers
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Stop, never, silent
from bandsearch.values.spec import (
    MOST_EPOCHS,
    MOST_SEED,
    TOLERANCE,
    DataSpec,
    ModelSpec,
    Objective,
    PriorSource,
    RunSpec,
    TrainSpec,
)

if TYPE_CHECKING:
    from bandsearch.adapters.verify import Finding
    from bandsearch.run.outcome import RunOutcome, RunStatus
    from bandsearch.values.evaluation import Evaluation, Winner


def specify(
    model: str,
    dataset: str | Sequence[str] | None = None,
    *,
    budget: str | None = None,
    trials: int | None = None,
    space: str = "default",
    objective: str = "loss",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    dataset_config: str | None = None,
    dataset_split: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    max_length: int | None = None,
    max_examples: int | None = None,
    epochs: float = 3.0,
    steps: int | None = None,
    batch_size: int = 16,
    without: tuple[str, ...] = (),
    with_: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    task_directory: str | None = None,
    task_limit: int | None = None,
    task_chat: bool | None = None,
    num_fewshot: int | None = None,
    retention: str | None = None,
    prior: str = "none",
    atlas: str | None = None,
) -> RunSpec:
    """Everything a person decides, checked. Raises UsageError, SpaceError or BudgetError, and ModelError or DataError
    for a model or data that cannot be meant.

    The rows of several `dataset`s are joined. `validation` and `test` are files of rows for these splits.
    `dataset` may be left out for the embedded model alone, which brings its own tasks. It also brings texts of the kind
    it was pre-trained on, which take the place of the neutral ones where no `retention` is given. `columns` are
    what columns are read as, such as {"article": "prompt", "highlights": "completion"}. `with_` and `without` name
    levers of the engine to switch on and off. `tolerance` is the share of
    full depth's validation loss that does not matter. `template` is a jinja chat template's file or name, read now and
    kept with the specification.
    """
    if not dataset:
        if model != DEMO:
            raise UsageError(
                f"No data set was given for {model}.", "Add --dataset FILE, a hub id, or demo:<task> (see --help)."
            )
        dataset = f"demo:{next(iter(TASKS))}"
    if retention is None and model == DEMO:
        retention = f"demo:{CORPUS}"
    if objective not in set(Objective):
        raise UsageError(f"Unknown objective {objective!r}.", f"Choose {' or '.join(Objective)}.")
    if not 0 <= tolerance < 1:
        raise UsageError(f"A tolerance of {tolerance:g} is no share of a loss.", "Give 0.01 for one per cent.")
    if epochs > MOST_EPOCHS:
        raise UsageError(f"{epochs:g} epochs are more than can be counted.", f"Give at most {MOST_EPOCHS:.0f}.")
    if seed > MOST_SEED:
        raise UsageError(f"The seed {seed} is too large.", f"Give at most {MOST_SEED}.")
    if prior not in set(PriorSource):
        raise UsageError(f"Unknown prior {prior!r}.", f"Choose {' or '.join(PriorSource)}.")
    if budget is None and trials is None:
        raise UsageError("Neither a budget nor a number of trials was given.", "Add --budget 45min or --trials 20.")
    named = ModelSpec(name=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    # A typing error is said before the seconds that it takes to import torch.
    resolve(named)
    data = specify_data(
        dataset, dataset_config, dataset_split, columns, template, max_length, max_examples, validation, test
    )
    if retention is not None:
        look_for(retention)
    return RunSpec(
        model=named,
        data=data,
        train=TrainSpec(epochs=epochs, steps=steps, batch_size=batch_size),
        space=load_space(space),
        budget=Budget.parse(budget) if budget else None,
        trials=trials,
        objective=Objective(objective),
        tolerance=tolerance,
        levers=Levers.switched(on=with_, off=without),
        seed=seed,
        tasks=tasks,
        task_directory=task_directory,
        task_limit=task_limit,
        task_chat=task_chat,
        num_fewshot=num_fewshot,
        retention=retention,
        prior=PriorSource(prior),
        atlas=atlas,
    )


def specify_data(
    dataset: str | Sequence[str],
    config: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    max_length: int | None = None,
    max_examples: int | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> DataSpec:
    """A data set and how it is written, as in `specify`. Raises DataError where there can be none of that name, and
    UsageError for a template."""
    name, *also = (dataset,) if isinstance(dataset, str) else dataset
    for each in (name, *also):
        look_for(each)
    for file in filter(None, (validation, test)):
        look_for_file(file)
    return DataSpec(
        name=name,
        also=tuple(also),
        validation=validation,
        test=test,
        config=config,
        split=split,
        columns=dict(columns or {}),
        max_length=max_length,
        max_examples=max_examples,
        template=load_template(template) if template else None,
    )


def run(
    spec: RunSpec, directory: str | Path | None = None, listen: Listener = silent, stop: Stop = never
) -> RunOutcome:
    """The whole job; see `bandsearch.run.main.run`."""
    from bandsearch.run import main

    return main.run(spec, _path(directory), listen, stop)


def resume(
    directory: str | Path, listen: Listener = silent, stop: Stop = never, budget: str | None = None
) -> RunOutcome:
    """Go on with an interrupted run, or with a larger budget; see `bandsearch.run.main.resume`."""
    from bandsearch.run import main

    return main.resume(Path(directory), listen, stop, budget)


def plan(spec: RunSpec, listen: Listener = silent, stop: Stop = never) -> Plan:
    """What the budget buys on this machine, measured; nothing is spent."""
    from bandsearch.run import single

    return single.plan_only(spec, listen, stop)


def probe(spec: RunSpec, listen: Listener = silent) -> SensitivityProfile:
    """The sensitivity profile alone."""
    from bandsearch.run import single

    return single.probe_only(spec, listen=listen)


def search(
    spec: RunSpec,
    directory: str | Path | None = None,
    listen: Listener = silent,
    stop: Stop = never,
) -> tuple[Path, Winner]:
    """Probe, search and confirm: the run's directory, where `resume` does the rest, and what it would hand over."""
    from bandsearch.run import main

    return main.search(spec, _path(directory), listen, stop)


def status(directory: str | Path) -> RunStatus:
    """How far a run is; works beside one that is under way."""
    from bandsearch.run import outcome

    return outcome.status(Path(directory))


def report(directory: str | Path) -> Path:
    """Write the report of a finished run again, from its files alone; where report.html is."""
    from bandsearch.run import publish

    return publish.rebuild_report(Path(directory))


def export(directory: str | Path, destination: str | Path, *, merged: bool = False) -> Path:
    """Copy a run's adapter to `destination`, which must not exist, or write the base with it `merged` there. Raises
    AdapterError for one that would be served wrong."""
    from bandsearch.run import exporting

    return exporting.export_run(Path(directory), Path(destination), merged=merged).directory


def verify(
    adapter: str | Path, model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[Finding, ...]:
    """What would make an adapter fail to load, or load and be silently wrong, on `model`; empty if it is sound."""
    from bandsearch.adapters.verify import verify_adapter
    from bandsearch.models.loading import summarize

    source = resolve(ModelSpec(name=model, revision=revision, trust_remote_code=trust_remote_code))
    return verify_adapter(Path(adapter), summarize(source).layout)


def evaluate(adapter: str | Path, spec: RunSpec, examples: int | None = None, listen: Listener = silent) -> Evaluation:
    """Score the base of `spec` and an adapter on its test split, at most `examples` of it; see
    `bandsearch.run.single.evaluate_adapter`."""
    from bandsearch.run import single

    return single.evaluate_adapter(Path(adapter), spec, examples, listen)


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)
