"""The look at a data set: what will be learned is visible with and without colours, and data cannot draw."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Dataset, prepare
from bandsearch.data.inspection import describe, facts
from bandsearch.values.spec import DataSpec

Write = Callable[[Sequence[Any]], str]


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Dataset:
    return prepare(DataSpec(name=path, **options), tokenizer, 0)


def shown(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, samples: int = 3, **options: Any) -> str:
    console = Console(width=100, **options)
    with console.capture() as capture:
        console.print(describe(dataset, tokenizer, samples))
    return capture.get()


def test_everything_a_person_asks_for_is_there(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    rows = [{"question": f"Is it {i}?", "answer": "Yes " * (i + 1)} for i in range(20)] * 2
    dataset = prepared(jsonl(rows), chat, max_length=40)
    text = shown(dataset, chat)
    for note in dataset.notes:
        assert note in " ".join(text.split())
    assert "20 duplicate rows dropped." in text
    assert "cut to 40 tokens" in text
    assert re.search(rf"train +{len(dataset.train)} +\d+ +\d+", text)
    assert text.count("⟦Yes") == 3
    assert "Is it" in text
    assert "⟦" not in shown(dataset, chat, samples=0)


def test_colours_take_the_place_of_marks(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    dataset = prepared(jsonl([{"question": f"Is it {i}?", "answer": "Yes"} for i in range(20)]), chat)
    text = shown(dataset, chat, 1, force_terminal=True, color_system="truecolor")
    assert "\x1b[1;32mYes<|im_end|></s>" in text
    assert "⟦" not in text


def test_data_neither_styles_nor_steers_the_terminal(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    attack = "[bold red]x[/nope] \x1b[2J\x07\x9b31m [link=file:///]"
    rows = [{"prompt": f"{attack} {i}", "completion": attack} for i in range(20)]
    text = shown(prepared(jsonl(rows), plain), plain)
    assert "[bold red]x[/nope]" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_long_examples_are_clipped_in_the_middle(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": f"{i} " + "word " * 1000, "completion": "start " + "word " * 1000 + "end"} for i in range(10)]
    text = shown(prepared(jsonl(rows), plain, max_length=20_000), plain, 1)
    assert "characters …" in text
    assert "⟦start" in text
    assert "end</s>⟧" in " ".join(text.split()).replace(" ⟧", "⟧")
    assert len(text) < 6000


def test_facts_are_plain_and_agree_with_the_data(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    dataset = prepared(jsonl([{"question": f"Is it {i}?", "answer": "Yes " * (i + 1)} for i in range(20)]), chat)
    told = json.loads(json.dumps(facts(dataset)))
    everything = [*dataset.train, *dataset.validation, *dataset.test]
    lengths = sorted(len(example.input_ids) for example in everything)
    assert told["splits"]["train"]["rows"] == len(dataset.train)
    assert sum(split["tokens"] for split in told["splits"].values()) == sum(lengths)
    assert sum(s["learned_tokens"] for s in told["splits"].values()) == sum(sum(e.supervised) for e in everything)
    assert told["lengths"] == {
        "shortest": lengths[0],
        "median": lengths[9],
        "p90": lengths[17],
        "p99": lengths[19],
        "longest": lengths[19],
    }
    assert told["rows"]["read"] == 20
    assert told["fingerprint"] == dataset.fingerprint
