"""Chat templates that a person chooses: read from a jinja file, or known by name."""

from __future__ import annotations

import json
from pathlib import Path

from bandsearch.values.errors import UsageError
from bandsearch.values.spec import ChatTemplate

CHATML = """\
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" + (message["content"] or "") + "<|im_end|>\\n" -}}
{%- endfor -%}
{{- "<|im_start|>assistant\\n" if add_generation_prompt -}}
"""
NAMED = {"chatml": CHATML}
_EXPECTED = f"Give a jinja file, such as a repository's chat_template.jinja, or {', '.join(NAMED)}."


def load_template(name_or_path: str) -> ChatTemplate:
    """The chat template of that name, or the text of that file. Raises UsageError for a file that cannot be read, is
    empty, or is JSON; whether it parses is seen where it is tried with a tokenizer."""
    if name_or_path in NAMED:
        return ChatTemplate(name=name_or_path, text=NAMED[name_or_path])
    path = Path(name_or_path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"There is no chat template {name_or_path}.", _EXPECTED) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start + 1}).", _EXPECTED) from error
    except OSError as error:
        raise UsageError(f"The chat template {path} cannot be read: {error.strerror or error}.", _EXPECTED) from error
    if not text.strip():
        raise UsageError(f"The chat template {path} is empty.", _EXPECTED)
    # It may parse as a template, and would then be written around every conversation.
    if _is_json(text):
        raise UsageError(f"{path} is JSON, not a jinja template.", "Save what its chat_template says as a .jinja file.")
    return ChatTemplate(name=path.name, text=text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
