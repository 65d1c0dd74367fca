"""Texts of a base model's own kind, on which is measured what fine-tuning has made it forget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Encoded
from bandsearch.data.encoding import encode
from bandsearch.data.problems import refuse, too_many
from bandsearch.data.reading import Table, read
from bandsearch.data.shapes import Shape, recognise
from bandsearch.data.splits import sampled, without_duplicates
from bandsearch.data.template import template_for
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

# Short passages of prose, instruction, dialogue and code, written for this purpose: no benchmark's text.
NEUTRAL = Path(__file__).with_name("neutral.jsonl")
MOST_TEXTS = 128
MOST_TOKENS = 256


@dataclass(frozen=True)
class RetentionTexts:
    """`name` for people: a file's name, or what the texts are that come along."""

    name: str
    texts: tuple[Encoded, ...]


def retention_texts(name: str | None, tokenizer: PreTrainedTokenizerBase, max_length: int) -> RetentionTexts:
    """At most MOST_TEXTS texts of at most `max_length` and MOST_TOKENS tokens; without a `name` the neutral ones.

    `name` is whatever a data set may be, or a .txt file whose paragraphs are the texts. Which rows of a long file are
    taken depends on their content alone. Raises DataError for a file that cannot be read, holds nothing, or cannot be
    written with the tokenizer's template.
    """
    table = _read(name)
    recognised = recognise(table.name, (*table.train, *table.validation, *table.test))
    distinct = without_duplicates(recognised.examples)
    chosen = [distinct.examples[key] for key in sampled(distinct.examples, MOST_TEXTS, seed=0)]
    template = template_for(tokenizer, recognised.shape, tuple(distinct.examples.values()))
    length = min(max_length, MOST_TOKENS, tokenizer.model_max_length)
    encoding = encode(chosen, template, tokenizer, length)
    if too_many(encoding.problems, len(chosen)):
        raise refuse(table.name, encoding.problems, len(chosen), "Mend or remove these rows.")
    # Of a conversation that is learned from copies the last is the whole; of a long text the beginning is enough.
    place = 0 if recognised.shape is Shape.TEXT else -1
    texts = tuple(parts[place] for parts in encoding.encoded if parts)
    if not texts:
        raise DataError(
            f"No text of {table.name} has a token to predict within the first {length}.",
            "Give --retention shorter prompts, or plain texts.",
        )
    return RetentionTexts("neutral prompts" if name is None else table.name, texts)


def _read(name: str | None) -> Table:
    path = NEUTRAL if name is None else Path(name).expanduser()
    if path.suffix.lower() == ".txt" and path.is_file():
        from bandsearch.data.files import read_paragraphs

        return Table(name=path.name, train=read_paragraphs(path))
    return read(DataSpec(name=str(path) if name is None else name))
