"""The model card of an exported adapter: Markdown with the hub's YAML header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from bandsearch.adapters.limits import serve_command
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import ArmScores, Evaluation, Winner
from bandsearch.values.layout import Layout, Serving
from bandsearch.values.source import Source


def model_card(
    winner: Winner,
    layout: Layout,
    source: Source,
    data: str,
    template: str | None,
    adapter: Path,
    evaluation: Evaluation | None = None,
    chat_template: Path | None = None,
) -> str:
    """What the adapter is, how it was chosen, what it measures and how to use it.

    `data` is the data set's name, `template` how its examples were written as text, None for the model's
    own chat template; `adapter` where the adapter lies, `chat_template` where what writes `template` lies, if anything
    does.
    Without `evaluation` the numbers of the test split are left out.
    """
    name = f"{source.slug} adapter for {data}"
    parts = [
        _header(source),
        f"# {_plain(name)}",
        f"A LoRA adapter for `{source}` trained on `{_plain(data)}`, found by bandsearch.",
        "## What was chosen",
        _choice(winner, layout),
        _plain(winner.reason),
    ]
    if evaluation is not None:
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
        _prompts(template, chat_template),
        "```python\n" + _python(source, adapter, chat_template) + "\n```",
        _serving(winner, layout, source, adapter, chat_template),
        f"The scale of the update is folded into the B factors (`lora_alpha` = `r` = {winner.candidate.rank}), so that "
        "every PEFT and vLLM release computes the same update.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(source: Source) -> str:
    tags = ["lora", "peft", "bandsearch"]
    if not source.is_local:
        tags.append(f"base_model:adapter:{source.location}")
    # The hub knows no local directories, and a path is nobody else's business.
    fields: dict[str, object] = {} if source.is_local else {"base_model": source.location}
    fields |= {
        "library_name": "peft",
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


def _serving(winner: Winner, layout: Layout, source: Source, adapter: Path, chat_template: Path | None) -> str:
    if layout.serving is Serving.NONE:
        return (
            f"vLLM serves no LoRA adapters on {layout.family} models; `model.merge_and_unload()` makes a plain model."
        )
    return "```sh\n" + serve_command(source, adapter, winner.candidate.rank, chat_template=chat_template) + "\n```"


def _choice(winner: Winner, layout: Layout) -> str:
    candidate, trained = winner.as_trained(winner.candidate), winner.trained(winner.candidate)
    rows = [
        ("layers", f"{_layers(candidate)} of {layout.layer_count} ({layout.family})"),
        ("modules", ", ".join(linear.leaf for linear in layout.targets(candidate.targets))),
        ("rank", str(candidate.rank)),
        ("scale", f"{candidate.scale:.4g} ({candidate.method}, alpha {candidate.alpha:g})"),
        ("learning rate", f"{candidate.learning_rate:.3g}"),
        (
            "trained parameters",
            f"{winner.trainable_parameters:,} (tuned full-depth LoRA: {winner.baseline_parameters:,})",
        ),
    ]
    if trained is not None:
        rows.append(("training", f"{trained.steps} steps; this is the adapter of step {trained.kept_step}"))
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _layers(candidate: Candidate) -> str:
    return ", ".join(
        f"{band.start}" if band.width == 1 else f"{band.start} to {band.stop - 1}" for band in candidate.bands
    )


def _counts(evaluation: Evaluation) -> str:
    examples = min(len(arm.examples) for arm in evaluation.arms)
    words = f"{examples} examples that were not trained on"
    return words + (f"; exact match is over the first {evaluation.answered} of them." if evaluation.answered else ".")


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


def _python(source: Source, adapter: Path, chat_template: Path | None) -> str:
    options = f", revision={source.revision!r}" if source.revision else ""
    options += ", trust_remote_code=True" if source.trust_remote_code else ""
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({source.location!r}{options})",
        f"tokenizer = AutoTokenizer.from_pretrained({source.location!r}{options})",
        f"model = PeftModel.from_pretrained(base, {str(adapter)!r})",
    ]
    if chat_template is not None:
        lines.insert(0, "from pathlib import Path\n")
        lines.append(f'tokenizer.chat_template = Path({str(chat_template)!r}).read_text(encoding="utf-8")')
    return "\n".join(lines)
