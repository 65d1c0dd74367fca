"""The model card of an exported adapter: Markdown with the hub's YAML header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from bandsearch.adapters.limits import merging, not_served, serve_command, serve_merged
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import ArmScores, Evaluation, Winner
from bandsearch.values.layout import Layout
from bandsearch.values.lineage import Lineage
from bandsearch.values.source import Source


def model_card(
    winner: Winner,
    lineage: Lineage,
    adapter: Path,
    evaluation: Evaluation | None = None,
    chat_template: Path | None = None,
    *,
    merged: bool = False,
) -> str:
    """What the adapter is, how it was chosen, what it measures and how to use it.

    `adapter` is where the adapter lies, or the model that it is `merged` into; `chat_template` where what writes the
    lineage's template lies, if anything does. Without `evaluation` the numbers of the test split are left out.
    """
    source, data = lineage.source, _plain(lineage.data)
    what = f"`{source}` with a LoRA adapter merged into it," if merged else f"A LoRA adapter for `{source}`"
    parts = [
        _header(source, merged),
        f"# {_plain(source.slug)} {'tuned' if merged else 'adapter'} for {data}",
        f"{what} trained on `{data}`, found by bandsearch.",
        "## What was chosen",
        _choice(winner, lineage),
        _plain(winner.reason),
    ]
    if lineage.is_nf4:
        parts.append(
            "Trained and measured on an NF4 base, as the code below loads it: on the base's full weights, which vLLM "
            "serves and a merged model holds, figures may differ."
        )
    if evaluation is not None:
        evaluation = winner.distinct(evaluation)
        parts += [
            "## Test split",
            _counts(evaluation),
            "\n".join(_table(evaluation)),
            "\n".join(_differences(evaluation)),
        ]
        if evaluation.task_form:
            parts.append(f"Tasks of lm-eval are asked {_plain(evaluation.task_form)}.")
        if evaluation.retention_texts:
            parts.append(
                f"Retention loss is measured on texts away from the task ({_plain(evaluation.retention_texts)}), "
                "in nats per token; divergence is KL(base ‖ arm) on the same tokens, the mean over them."
            )
    parts += [
        "## Use",
        _prompts(lineage.template, chat_template),
        *(_merged_use(lineage, adapter) if merged else _use(winner, lineage, adapter, chat_template)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(source: Source, merged: bool) -> str:
    tags = ["lora", "bandsearch"] if merged else ["lora", "peft", "bandsearch"]
    if not source.is_local:
        tags.append(f"base_model:{'finetune' if merged else 'adapter'}:{source.location}")
    # The hub knows no local directories, and a path is nobody else's business.
    fields: dict[str, object] = {} if source.is_local else {"base_model": source.location}
    fields |= {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    return "---\n" + yaml.safe_dump(fields, sort_keys=False).strip() + "\n---"


def _prompts(template: str | None, chat_template: Path | None) -> str:
    """An adapter knows the form it was trained in, and no other file of it says which that was."""
    if template is None:
        return (
            "It was trained on the model's chat template: ask through `tokenizer.apply_chat_template`, or vLLM's "
            "`/v1/chat/completions`."
        )
    if chat_template is not None:
        return (
            f"It was trained on conversations as `{chat_template.name}` writes them (`{_plain(template)}`): ask "
            "through `tokenizer.apply_chat_template`, or vLLM's `/v1/chat/completions`, with that template."
        )
    return (
        f"It was trained on this form of prompt: `{_plain(template)}`. Ask in the same form; vLLM's `/v1/completions` "
        "takes it as it is, `/v1/chat/completions` would write another."
    )


def _use(winner: Winner, lineage: Lineage, adapter: Path, chat_template: Path | None) -> Iterator[str]:
    rank = winner.candidate.rank
    command = serve_command(lineage.source, adapter, rank, chat_template=chat_template)
    yield _code("python", python_code(lineage, adapter, chat_template))
    yield not_served(lineage.layout) or _code("sh", command)
    yield (
        f"The scale of the update is folded into the B factors (`lora_alpha` = `r` = {rank}), so that every PEFT and "
        "vLLM release computes the same update."
    )
    yield f"`{merging()}` writes a model with it merged in, where `RUN` is the run's directory."


def _merged_use(lineage: Lineage, model: Path) -> Iterator[str]:
    source, auto_class = lineage.source, _auto_class(lineage)
    code = ", trust_remote_code=True" if source.trust_remote_code else ""
    lines = (
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f"model = {auto_class}.from_pretrained({str(model)!r}{code})",
        f"tokenizer = AutoTokenizer.from_pretrained({str(model)!r}{code})",
    )
    yield _code("python", "\n".join(lines))
    yield _code("sh", serve_merged(source, model))
    yield "The update was added to the weights in fp32 and rounded once to what they are stored in."


def _auto_class(lineage: Lineage) -> str:
    return "AutoModelForImageTextToText" if lineage.layout.is_part else "AutoModelForCausalLM"


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _choice(winner: Winner, lineage: Lineage) -> str:
    layout = lineage.layout
    candidate, trained = winner.as_trained(winner.candidate), winner.trained(winner.candidate)
    rows = [
        ("layers", f"{_layers(candidate)} of {layout.layer_count} ({layout.family})"),
        ("modules", ", ".join(_modules(candidate, layout))),
        ("rank", str(candidate.rank)),
        ("scale", f"{candidate.scale:.4g} ({candidate.method}, alpha {candidate.alpha:g})"),
        ("learning rate", f"{candidate.learning_rate:.3g}"),
        (
            "trained parameters",
            f"{winner.trainable_parameters:,} (tuned full-depth LoRA: {winner.baseline_parameters:,})",
        ),
    ]
    if lineage.dtype:
        rows.append(("precision", lineage.precision))
    if lineage.commit:
        rows.append(("base", f"{lineage.source.location}, commit {lineage.commit}"))
    if trained is not None:
        rows.append(("training", f"{trained.steps} steps; this is the adapter of step {trained.kept_step}"))
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _modules(candidate: Candidate, layout: Layout) -> tuple[str, ...]:
    """The names of what is adapted in any of its layers, each once."""
    linears = layout.targets(candidate.targets)
    return tuple(dict.fromkeys(each.leaf for each in linears if any(map(each.is_in, candidate.layers))))


def _layers(candidate: Candidate) -> str:
    return ", ".join(
        f"{band.start}" if band.width == 1 else f"{band.start} to {band.stop - 1}" for band in candidate.bands
    )


def _counts(evaluation: Evaluation) -> str:
    examples = min(len(arm.examples) for arm in evaluation.arms)
    words = f"{examples} examples that were not trained on"
    return f"{words}; {evaluation.judged}." if evaluation.judged else f"{words}."


def _table(evaluation: Evaluation) -> Iterator[str]:
    tasks = sorted({task for arm in evaluation.arms for task in arm.tasks})
    kept = ("retention loss", "divergence from the base") if any(arm.retention for arm in evaluation.arms) else ()
    yield "| " + " | ".join(("", "parameters", "loss", "exact match", *tasks, *kept)) + " |"
    yield "|" + "---|" * (4 + len(tasks) + len(kept))
    for arm in evaluation.arms:
        cells = [_arm(arm.arm), *_cells(arm), *(_score(arm, task) for task in tasks)]
        if kept:
            found = arm.retention
            cells += ["–", "–"] if found is None else [_number(found.loss), _number(found.divergence)]
        yield "| " + " | ".join(cells) + " |"


def _cells(arm: ArmScores) -> tuple[str, str, str]:
    return f"{arm.trainable_parameters:,}", _number(arm.loss), _number(arm.exact_match)


def _score(arm: ArmScores, task: str) -> str:
    documents = arm.documents(task)
    return _number(arm.tasks.get(task)) + (f" (first {documents} documents)" if documents is not None else "")


def _differences(evaluation: Evaluation) -> Iterator[str]:
    for comparison in evaluation.comparisons:
        interval = comparison.difference
        arms = f"{_arm(comparison.arm)} minus {_arm(comparison.reference)}"
        yield (
            f"- {_arm(comparison.metric)}, {arms}: {interval.mean:+.4f} "
            f"({interval.level:.0%} interval {interval.low:+.4f} to {interval.high:+.4f}, paired bootstrap)"
        )


def _arm(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text from data, on one line and without the characters that Markdown and HTML give a meaning."""
    return " ".join(text.split()).replace("`", "'").replace("<", "&lt;").replace("|", "\\|")


def python_code(lineage: Lineage, adapter: Path, chat_template: Path | None) -> str:
    """What loads an adapter onto its base."""
    source = lineage.source
    options = f", revision={source.revision!r}" if source.revision else ""
    options += ", trust_remote_code=True" if source.trust_remote_code else ""
    bits, quantized, config = "", "", []
    if lineage.is_nf4:
        bits, quantized = ", BitsAndBytesConfig", ", quantization_config=four_bits"
        kind = 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
        config = [
            f'four_bits = BitsAndBytesConfig(load_in_4bit=True, {kind}, bnb_4bit_compute_dtype="{lineage.dtype}")'
        ]
    auto_class = _auto_class(lineage)
    lines = [
        "from peft import PeftModel",
        f"from transformers import {auto_class}, AutoTokenizer{bits}",
        "",
        *config,
        f"base = {auto_class}.from_pretrained({source.location!r}{options}{quantized})",
        f"tokenizer = AutoTokenizer.from_pretrained({source.location!r}{options})",
        f"model = PeftModel.from_pretrained(base, {str(adapter)!r})",
    ]
    if chat_template is not None:
        lines.insert(0, "from pathlib import Path\n")
        lines.append(f'tokenizer.chat_template = Path({str(chat_template)!r}).read_text(encoding="utf-8")')
    return "\n".join(lines)
