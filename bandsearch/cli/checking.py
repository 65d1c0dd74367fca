"""Commands that check things: verify, eval, data, models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bandsearch.cli.options import (
    NO_SEARCH,
    Columns,
    DatasetConfig,
    DatasetSplit,
    Dtype,
    Json,
    MaxExamples,
    MaxLength,
    ModelName,
    Revision,
    Template,
    TestFile,
    TrustRemoteCode,
    ValidationFile,
    takes_specification,
)
from bandsearch.cli.output import json_only
from bandsearch.cli.session import session

if TYPE_CHECKING:
    from bandsearch.adapters.serving import ServingReport
    from bandsearch.adapters.verify import Finding
    from bandsearch.values.source import Source
    from bandsearch.values.spec import RunSpec

AdapterPath = Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter directory.")]
NOT_SOUND = 1
PROMPTS = ("The answer is", "Question: How many days are there in two weeks?\nAnswer:", "One, two, three,")


def verify(
    adapter: AdapterPath,
    model: ModelName,
    runtime: Annotated[
        Literal["vllm"] | None,
        typer.Option(help="Also serve it with vLLM and compare log-probabilities with Transformers and PEFT."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to compare on, with --runtime; may be given several times.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Find everything that would make an adapter fail to load, or load and be silently wrong. Exit code 1 if so.

    \b
    Examples:
      bandsearch verify results/demo/adapter --model demo
      bandsearch verify my-adapter --model qwen2.5-7b --runtime vllm
    """
    from bandsearch.adapters.verify import Severity, verify_adapter
    from bandsearch.models.aliases import resolve
    from bandsearch.models.loading import summarize
    from bandsearch.values.spec import ModelSpec

    source = resolve(ModelSpec(name=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code))
    with session(json) as at:
        findings = verify_adapter(adapter, summarize(source).layout)
        sound = not any(finding.severity is Severity.ERROR for finding in findings)
        served = _served(adapter, source, dtype, tuple(prompt or PROMPTS)) if runtime and sound else None
        sound = sound and (served is None or served.problem is None)
        at.write(
            {
                "event": "result",
                "sound": sound,
                "findings": [finding.model_dump(mode="json") for finding in findings],
                "served": None if served is None else {**served.model_dump(mode="json"), "problem": served.problem},
            }
        )
    if not json:
        _print_findings(at.console, adapter, findings, served)
    if not sound:
        raise typer.Exit(NOT_SOUND)


def _served(adapter: Path, source: "Source", dtype: str, prompts: tuple[str, ...]) -> "ServingReport":
    import torch

    from bandsearch.adapters.serving import compare_with_vllm
    from bandsearch.models.families import layout_of
    from bandsearch.models.loading import load_model
    from bandsearch.models.tokenizer import load_tokenizer
    from bandsearch.values.errors import UsageError

    if dtype == "nf4":
        raise UsageError("vLLM is asked to serve the base as it is, not in 4 bits.", "Use --dtype bf16 or fp32.")
    if dtype == "auto":
        dtype = "fp32"
        if torch.cuda.is_available():
            # vLLM has no LoRA kernels for 32 bits there.
            dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype)
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    return compare_with_vllm(adapter, model, layout_of(model), source, encoded, dtype=names[dtype])


def _print_findings(
    console: Console, adapter: Path, findings: tuple["Finding", ...], served: "ServingReport | None"
) -> None:
    colours = {"error": "red", "warning": "yellow"}
    for finding in findings:
        mark = f"[{colours[finding.severity]}]{finding.severity}[/] [dim]{finding.code}[/dim]"
        console.print(f"{mark}  {escape(finding.message)} {escape(finding.remedy)}", highlight=False)
    if not findings:
        console.print(f"[green]ok[/green]  {escape(str(adapter))}: the structure is sound", highlight=False)
    if served is None:
        return
    words = (
        f"vLLM {served.versions.get('vllm', '')}: largest difference {served.difference:.2g} over {served.compared} "
        f"log-probabilities, effect of the adapter {served.effect:.2g}, greedy {served.greedy_equal} of "
        f"{served.greedy_total}"
    )
    console.print(f"[green]ok[/green]  {words}" if served.problem is None else f"[red]error[/red]  {words}")
    if served.problem is not None:
        console.print(served.problem, markup=False)


@takes_specification(**NO_SEARCH)
def evaluate(
    spec: "RunSpec",
    adapter: AdapterPath,
    examples: Annotated[int | None, typer.Option(min=1, help="At most this many test examples.")] = None,
    json: Json = False,
) -> None:
    """Score a model with and without an adapter on a test split: loss, exact match, and lm-eval tasks.

    \b
    Examples:
      bandsearch eval results/demo/adapter --model demo --tasks demo_two_step
      bandsearch eval my-adapter -m qwen2.5-7b -d my.jsonl --tasks gsm8k --task-limit 200
    """
    with session(json) as at:
        from bandsearch.run.single import evaluate_adapter

        evaluation = evaluate_adapter(adapter, spec, examples, at.listen)
        at.say(evaluation)
    if not json:
        from bandsearch.cli.tables import evaluation_table

        at.console.print(evaluation_table(evaluation))


def data(
    names: Annotated[
        list[str], typer.Argument(metavar="DATASET...", help="Files, hub ids, or demo:<task>; rows are joined.")
    ],
    model: ModelName = "demo",
    samples: Annotated[int, typer.Option(min=0, help="Masked samples to show.")] = 3,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    columns: Columns = None,
    template: Template = None,
    max_length: MaxLength = None,
    max_examples: MaxExamples = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of rows.")] = 0,
    json: Json = False,
) -> None:
    """Show what a model would learn from a data set: its shape, splits, lengths, and samples with the loss in colour.

    \b
    Examples:
      bandsearch data my.jsonl --model qwen2.5-7b
      bandsearch data openai/gsm8k --dataset-config main -m llama3.2-1b
      bandsearch data mine.jsonl more.jsonl --test test.jsonl
      bandsearch data news.csv --columns article=prompt,highlights=completion
      bandsearch data my.jsonl --model ./my-base --template chat_template.jinja
      bandsearch data demo:swap --json
    """
    from bandsearch.api import specify_data
    from bandsearch.data.columns import parse_columns
    from bandsearch.models.aliases import resolve
    from bandsearch.values.spec import ModelSpec

    named = parse_columns(columns) if columns else None
    spec = specify_data(
        names, dataset_config, dataset_split, named, template, max_length, max_examples, validation, test
    )
    source = resolve(ModelSpec(name=model, revision=revision, trust_remote_code=trust_remote_code))
    # They take seconds, which a typing error does not have to wait for.
    from bandsearch.data.dataset import prepare
    from bandsearch.data.inspection import describe, facts
    from bandsearch.models.config import context_length, load_config
    from bandsearch.models.tokenizer import load_tokenizer

    with session(json) as at:
        tokenizer = load_tokenizer(source)
        dataset = prepare(spec, tokenizer, seed, context=context_length(load_config(source)))
        at.write({"event": "result", **facts(dataset)})
    if not json:
        at.console.print(describe(dataset, tokenizer, samples))


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="An alias, hub id or directory to describe.")
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """List the short names of models, or describe one: layers, parameters, modules an adapter can sit on.

    \b
    Examples:
      bandsearch models
      bandsearch models qwen2.5-7b
      bandsearch models ./my-model --json
    """
    if name is None:
        _list_aliases(json)
        return
    from bandsearch.models.aliases import resolve
    from bandsearch.models.loading import summarize
    from bandsearch.values.spec import ModelSpec

    with session(json) as at:
        summary = summarize(resolve(ModelSpec(name=name, revision=revision, trust_remote_code=trust_remote_code)))
        at.say(summary)
    if not json:
        from bandsearch.cli.tables import model_table

        at.console.print(model_table(summary))


def _list_aliases(json: bool) -> None:
    from bandsearch.models.aliases import ALIASES, DEMO

    if json:
        with json_only() as write:
            write({"event": "result", "aliases": dict(ALIASES) | {DEMO: "embedded"}})
        return
    # Names are there to be copied: none is cut where there is little room.
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("alias", "hub id"):
        table.add_column(column, header_style="dim", overflow="fold")
    table.add_row(DEMO, "[dim]comes with bandsearch[/dim]")
    for names in ALIASES.items():
        table.add_row(*names)
    console = Console()
    console.print(table)
    console.print("Any hub id (org/name, org/name@revision) or directory works too.", style="dim")
