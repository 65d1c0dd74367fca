"""What vLLM accepts of an adapter, and the command that serves it. Seen on vLLM 0.32, read in 0.16 to 0.33."""

from __future__ import annotations

import shlex
from pathlib import Path

from bandsearch.values.layout import Layout, Serving
from bandsearch.values.source import Source

# The values of --max-lora-rank; an adapter may have any rank up to the one given. 16 is the default.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_LORA_RANK = 16

# Beside an adapter, under the name that Hugging Face repositories have it by.
CHAT_TEMPLATE_FILE = "chat_template.jinja"

# Labels that say how A and B began. Others (pissa, olora, corda, loftq) change the base weights too.
INIT_LABELS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


def max_lora_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that holds `rank`, None where there is none."""
    return next((allowed for allowed in MAX_LORA_RANKS if allowed >= rank), None)


def chat_template_of(adapter: Path) -> Path | None:
    """Where an exported adapter keeps its chat template, None where that is the base's own."""
    path = adapter / CHAT_TEMPLATE_FILE
    return path if path.is_file() else None


def serve_command(source: Source, adapter: Path, rank: int, chat_template: Path | None = None) -> str:
    """The shell command that serves the base and, as model `bandsearch`, the adapter through vLLM.

    vLLM takes tokenizer and chat template from the base, never from an adapter's directory: another `chat_template` has
    to be named.
    """
    parts = ["vllm", "serve", source.location]
    if source.revision:
        parts += ["--revision", source.revision]
    if source.trust_remote_code:
        parts.append("--trust-remote-code")
    if chat_template is not None:
        parts += ["--chat-template", str(chat_template)]
    allowed = max_lora_rank(rank) or rank
    parts += ["--enable-lora", "--max-lora-rank", str(allowed), "--lora-modules", f"bandsearch={adapter}"]
    return shlex.join(parts)


def serve_merged(source: Source, model: Path) -> str:
    """The shell command that serves a model with the adapter merged into it, which brings its chat template."""
    code = ["--trust-remote-code"] if source.trust_remote_code else []
    return shlex.join(["vllm", "serve", str(model), *code])


def merging(run: Path | str = "RUN") -> str:
    """The command that merges a run's adapter."""
    return f"bandsearch export {shlex.quote(str(run))} DESTINATION --merged"


def not_served(layout: Layout | None, run: Path | str = "RUN") -> str:
    """Where vLLM serves no adapters on such models a sentence that says so and what helps; nothing where it does."""
    if layout is None or layout.serving is not Serving.NONE:
        return ""
    return f"vLLM serves no LoRA adapters on {layout.family} models; `{merging(run)}` writes a plain model."
