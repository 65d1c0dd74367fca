"""When a generated answer counts as right."""

from __future__ import annotations

import re

_MARK = "####"
THOUGHT = "</think>"
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def final_answer(text: str) -> str:
    """What stands behind the last `####` (GSM8K, arXiv 2110.14168), its first number in plain digits where there is
    one; without a mark the whole text, white space folded.
    """
    _, mark, tail = text.rpartition(_MARK)
    if not mark:
        return " ".join(text.split())
    number = _NUMBER.search(tail)
    if number is None:
        return " ".join(tail.split())
    digits = number.group().replace(",", "").lstrip("+")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def is_right(generated: str, reference: str) -> bool:
    """Exact match of final answers, behind what a model thinks first. Where the reference carries the mark, the
    generated text must carry it too. Nothing is right where the reference says nothing."""
    said, wanted = (text.rpartition(THOUGHT)[2] for text in (generated, reference))
    if _MARK in wanted and _MARK not in said:
        return False
    return bool(final_answer(wanted)) and final_answer(said) == final_answer(wanted)
