"""A look at a prepared data set: what was made of it, and what exactly will be learned."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Dataset, Encoded, Examples

LEARNED, READ = "bold green", "dim"
_PERCENTILES = {"shortest": 0, "median": 50, "p90": 90, "p99": 99, "longest": 100}
_BUCKETS = 8
_BAR = 40
# Of a longer stretch of text only its beginning and end are shown.
_CLIP = 800

# Control characters are drawn, not sent: data must not steer the terminal.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def facts(dataset: Dataset) -> dict[str, Any]:
    """Everything `describe` shows but the samples, for programs. Lengths are in tokens."""
    return {
        "name": dataset.name,
        "shape": dataset.shape,
        "template": dataset.template,
        "fingerprint": dataset.fingerprint,
        "max_length": dataset.max_length,
        "splits": {
            split: {
                "rows": len(examples),
                "tokens": int(examples.lengths.sum()),
                "learned_tokens": int(examples.learned.sum()),
            }
            for split, examples in _splits(dataset).items()
        },
        "lengths": _percentiles(_lengths(dataset)),
        "learned_lengths": _percentiles(_learned(dataset)),
        "rows": dataclasses.asdict(dataset.counts),
        "notes": list(dataset.notes),
    }


def describe(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, samples: int = 3) -> RenderableType:
    """Notes, split sizes, lengths and `samples` training examples, to be printed on a rich console."""
    head: list[RenderableType] = [
        Text(f"{dataset.name}  {dataset.fingerprint}".translate(_VISIBLE), "bold"),
        *(Text(f"  {note}".translate(_VISIBLE)) for note in dataset.notes),
        _sizes(dataset),
        _histogram(dataset),
    ]
    return Group(*head, *(Sample(example, tokenizer) for example in dataset.train[:samples]))


@dataclass(frozen=True)
class Sample:
    """An example as the model sees it, what is learned in colour; without colours, between ⟦ and ⟧."""

    example: Encoded
    tokenizer: PreTrainedTokenizerBase

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = console.color_system is None
        length, learned = len(self.example.input_ids), self.example.learned
        legend = "between ⟦ and ⟧" if marks else "in green"
        yield Text(f"\n{self.example.place}: {length} tokens; {learned} of them, {legend}, are learned", "cyan")
        yield self.text(marks)

    def text(self, marks: bool) -> Text:
        text = Text()
        tokens = zip(self.example.supervised.tolist(), self.example.input_ids.tolist(), strict=True)
        for learned, run in itertools.groupby(tokens, key=lambda pair: pair[0]):
            piece = _clipped(str(self.tokenizer.decode([token for _, token in run])).translate(_VISIBLE))
            text.append(f"⟦{piece}⟧" if learned and marks else piece, LEARNED if learned else READ)
        return text


def _sizes(dataset: Dataset) -> Table:
    table = Table("split", box=None, padding=(0, 2, 0, 2))
    for column in ("rows", "tokens", "learned"):
        table.add_column(column, justify="right")
    for split, examples in _splits(dataset).items():
        counts = (len(examples), int(examples.lengths.sum()), int(examples.learned.sum()))
        table.add_row(split, *(f"{count:,}" for count in counts))
    return table


def _histogram(dataset: Dataset) -> Text:
    lengths = _lengths(dataset)
    shown = ", ".join(f"{name} {value:,}" for name, value in _percentiles(lengths).items())
    text = Text(f"\nTokens per row: {shown}\n")
    buckets = list(_buckets(lengths))
    largest = max(count for _, _, count in buckets)
    for low, high, count in buckets:
        bar = "█" * round(_BAR * count / largest) or ("▏" if count else "")
        text.append(f"  {low:>6,} to {high:>6,}  {count:>7,}  ")
        text.append(f"{bar}\n", "blue")
    text.rstrip()
    return text


def _buckets(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(shortest, longest, how many) of equally wide ranges of lengths."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // _BUCKETS))
    for start in range(low, high + 1, width):
        end = min(start + width - 1, high)
        yield start, end, sum(start <= length <= end for length in lengths)


def _splits(dataset: Dataset) -> dict[str, Examples]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def _lengths(dataset: Dataset) -> list[int]:
    return [each for examples in _splits(dataset).values() for each in examples.lengths.tolist()]


def _learned(dataset: Dataset) -> list[int]:
    return [each for examples in _splits(dataset).values() for each in examples.learned.tolist()]


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles: the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return {name: ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for name, percent in _PERCENTILES.items()}


def _clipped(text: str) -> str:
    if len(text) <= _CLIP:
        return text
    half = _CLIP // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
