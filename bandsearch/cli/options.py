"""The options that say what a run is about, shared by every command that starts one."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bandsearch.cli.config import take_config

if TYPE_CHECKING:
    from bandsearch.values.spec import RunSpec

KEYWORD = inspect.Parameter.KEYWORD_ONLY
MODEL, DATA, TRAINING, SEARCH, TASKS = "Model", "Data", "Final training", "Search", "Evaluation"

ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Alias (see bandsearch models), hub id\\[@revision], or directory.", rich_help_panel=MODEL
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=MODEL)]
Dtype = Annotated[
    Literal["auto", "bf16", "fp16", "fp32", "nf4"],
    typer.Option(
        help="auto: bf16 on a GPU that computes in it, else fp32. fp16 needs half of its memory on older GPUs, but "
        "may overflow: nothing scales the loss. nf4 keeps the base in 4 bits (QLoRA; needs bandsearch\\[qlora]).",
        rich_help_panel=MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=MODEL)
]
DatasetName = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        "-d",
        help="JSONL, JSON, CSV or parquet file, folder with train, validation and test files, hub id\\[@revision] (its "
        "splits are used as they are), or demo:<task>; of several, the rows are joined. May be left out for --model "
        "demo only, which then takes its first task.",
        rich_help_panel=DATA,
    ),
]
DatasetConfig = Annotated[str | None, typer.Option(help="Configuration of a hub data set.", rich_help_panel=DATA)]
DatasetSplit = Annotated[str | None, typer.Option(help="Split of a hub data set.", rich_help_panel=DATA)]
ValidationFile = Annotated[
    str | None, typer.Option("--validation", help="File of the rows that validate.", rich_help_panel=DATA)
]
TestFile = Annotated[str | None, typer.Option("--test", help="File of the rows that test.", rich_help_panel=DATA)]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Columns of yours as what they are read as: article=prompt,highlights=completion.", rich_help_panel=DATA
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Tokens per example, prompt and answer together. Default: 1024, unless that cuts more than a fifth of the "
        "rows, which is refused.",
        rich_help_panel=DATA,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat template in place of the model's own: a jinja file such as chat_template.jinja, or chatml.",
        rich_help_panel=DATA,
    ),
]
MaxExamples = Annotated[int | None, typer.Option(min=1, help="Use at most this many rows.", rich_help_panel=DATA)]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, and nothing else.")]
RunPath = Annotated[Path, typer.Argument(metavar="DIR", help="The run's directory.")]
AtlasPath = Annotated[
    Path | None,
    typer.Option(
        "--atlas",
        help="Directory of the atlas. Default: what BANDSEARCH_ATLAS names, or ~/.cache/bandsearch/atlas.",
        file_okay=False,
        rich_help_panel=SEARCH,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run directory. Default: results/<model>-<data>-<date>.", file_okay=False),
]

# What a specification says beyond model and data, for commands that search and train nothing.
NO_SEARCH: dict[str, Any] = {
    "without": None,
    "with_": None,
    "budget": None,
    "trials": 1,
    "space": "default",
    "objective": "loss",
    "tolerance": 0.01,
    "epochs": 3.0,
    "steps": None,
    "prior": "none",
    "atlas": None,
}
NO_TASKS: dict[str, Any] = {"tasks": None, "task_directory": None, "task_limit": None, "retention": None}
NO_TASKS |= {"task_chat": None, "num_fewshot": None}


def specification(
    model: ModelName,
    dataset: DatasetName = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="8gpu-h, 30gpu-min (accelerators x time), 2cpu-h (cores x time) or 45min (wall clock).",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to try, in place of a time limit.", rich_help_panel=SEARCH)
    ] = None,
    space: Annotated[
        str, typer.Option(help="Search space: a name or a YAML file.", rich_help_panel=SEARCH)
    ] = "default",
    objective: Annotated[
        Literal["loss", "pareto", "retention"],
        typer.Option(
            help="loss: lowest validation loss. pareto: candidates are proposed for few parameters too, and the report "
            "draws the fronts; who is handed over is decided as with loss. retention: as loss, but among candidates "
            "equal within noise take the one that changed the base model least.",
            rich_help_panel=SEARCH,
        ),
    ] = "loss",
    tolerance: Annotated[
        float,
        typer.Option(
            help="What does not matter, as a share of full depth's validation loss: less is no win, and the smallest "
            "candidate that is no worse by more is handed over. 0 leaves it to the noise alone.",
            rich_help_panel=SEARCH,
        ),
    ] = 0.01,
    prior: Annotated[
        Literal["none", "atlas"],
        typer.Option(
            help="atlas: begin with a few candidates that won in earlier runs on this model or its family.",
            rich_help_panel=SEARCH,
        ),
    ] = "none",
    atlas: AtlasPath = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.", rich_help_panel=SEARCH)] = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    columns: Columns = None,
    template: Template = None,
    max_length: MaxLength = None,
    max_examples: MaxExamples = None,
    epochs: Annotated[
        float, typer.Option(min=0.001, help="Passes over the training split.", rich_help_panel=TRAINING)
    ] = 3.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; overrules --epochs.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step.", rich_help_panel=TRAINING)] = 16,
    without: Annotated[
        str | None,
        typer.Option(
            help="Levers of the engine to switch off, separated by commas: prefix_cache, packing, supervised_head, "
            "supervised_last_layer, unmasked_attention, length_grouping, data_parallel, fast_linear, liger.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="Levers of the engine to switch on that are off: compile (norms, activations and rotary embeddings "
            "fused by torch.compile, which takes of the budget at the start of every engine).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="lm-eval tasks, separated by commas, run on base, baseline and winner. The demo brings demo_two_step, "
            "demo_words, demo_symbol, demo_larger_plus and demo_swap.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    task_directory: Annotated[
        Path | None, typer.Option(help="Folder with your own lm-eval task YAML files.", rich_help_panel=TASKS)
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Documents per lm-eval task.", rich_help_panel=TASKS)
    ] = None,
    task_chat: Annotated[
        bool | None,
        typer.Option(
            "--task-chat/--no-task-chat",
            help="Ask tasks through the chat template that wrote the data, few-shot examples as turns, or as tasks "
            "have them. Default: through it where one did.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            min=0, help="Solved documents in front of each. Default: as the task says.", rich_help_panel=TASKS
        ),
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(
            help="Texts that are not about the task, to measure what the base model forgets: JSONL, .txt, or whatever "
            "--dataset takes. Default: neutral passages that come with bandsearch.",
            rich_help_panel=TASKS,
        ),
    ] = None,
) -> "RunSpec":
    """The specification these options stand for. Raises BandsearchError for what is wrong with them."""
    from bandsearch.api import specify
    from bandsearch.data.columns import parse_columns

    return specify(
        model,
        dataset,
        budget=budget,
        trials=trials,
        space=space,
        objective=objective,
        tolerance=tolerance,
        seed=seed,
        revision=revision,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        dataset_config=dataset_config,
        dataset_split=dataset_split,
        validation=validation,
        test=test,
        columns=parse_columns(columns) if columns else None,
        template=template,
        max_length=max_length,
        max_examples=max_examples,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        without=split_names(without),
        with_=split_names(with_),
        tasks=split_names(tasks),
        task_directory=str(task_directory) if task_directory else None,
        task_limit=task_limit,
        task_chat=task_chat,
        num_fewshot=num_fewshot,
        retention=retention,
        prior=prior,
        atlas=str(atlas) if atlas else None,
    )


def takes_specification(**fixed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn `command(spec, ...)` into a command with the options of `specification` in place of its first parameter.

    What is in `fixed` is not offered as an option and takes that value. The others may stand in a file.
    """
    described = inspect.signature(specification).parameters
    offered = {name: option for name, option in described.items() if name not in fixed}

    def take(context: typer.Context, path: Path | None) -> None:
        take_config(context, path, described)

    config = typer.Option(
        "--config",
        "-c",
        help="YAML file of options under their names, such as max-length: 512. The command line overrules it.",
        is_eager=True,
        callback=take,
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            del values["config"]
            spec = specification(**fixed, **{name: values.pop(name) for name in offered})
            command(spec, **values)

        file = inspect.Parameter("config", KEYWORD, default=None, annotation=Annotated[Path | None, config])
        arguments = [option.replace(kind=KEYWORD) for option in (file, *own, *offered.values())]
        with_options.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
        with_options.__annotations__ = {option.name: option.annotation for option in arguments}
        # Typer would read the wrapped command's annotations instead.
        del with_options.__wrapped__
        return with_options

    return decorate


def split_names(text: str | None) -> tuple[str, ...]:
    """ "a, b" as ("a", "b"); nothing for None."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
