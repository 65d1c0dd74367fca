"""A data set, ready to train on: read, recognised, freed of duplicates, encoded and split."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bandsearch.data.columns import renamed
from bandsearch.data.encoding import encode
from bandsearch.data.examples import Counts, Dataset, Encoded, Examples
from bandsearch.data.kept import origin_of, recalled
from bandsearch.data.problems import Problem, left_out, refuse, too_many
from bandsearch.data.reading import read
from bandsearch.data.shapes import TEXT_AND_LABEL, Recognised, Shape, recognise
from bandsearch.data.splits import (
    SHARE,
    Distinct,
    Grouping,
    Key,
    divided,
    held_out,
    key_of,
    ranked,
    sampled,
    without_duplicates,
)
from bandsearch.data.template import template_for
from bandsearch.values.errors import DataError
from bandsearch.values.spec import ChatTemplate, DataSpec

__all__ = ["Counts", "Dataset", "Encoded", "Examples", "prepare"]

FEWEST_ROWS = 10
# System messages per question, on average; with more of them it is they that ask.
MOST_SYSTEMS = 10
# Of what is not used, so many names are given.
MOST_COLUMNS = 12


def prepare(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, seed: int, known: Path | None = None) -> Dataset:
    """Read a data set and make it ready to train on. Raises DataError, and UsageError for a template of no use.

    Where the file `known` keeps what would come of these rows, they are read but not encoded again: encoding is nine
    tenths of the time.

    `seed` chooses the rows where `spec.max_examples` leaves some out; which split a row belongs to depends on its
    content alone. Splits that the data set brings are used as they are, without rows that ask what another one asks.
    """
    table = renamed(read(spec), spec.columns) if spec.columns else read(spec)
    recognised = recognise(table.name, table.train)
    own = {
        split: recognise(f"{table.name}, {split}", rows, like=recognised)
        for split, rows in (("validation", table.validation), ("test", table.test))
        if rows
    }
    parts, grouping = _distinct(recognised, own)
    by_key = {key: example for part in parts for key, example in part.examples.items()}
    different = len({key.content for key in by_key})
    if different < FEWEST_ROWS:
        raise DataError(
            f"{table.name} holds {_count(different, 'different row')}, too few to train, validate and test on.",
            f"Give at least {FEWEST_ROWS}, better some hundreds.",
        )
    shapes = {split: replace(each, examples=()) for split, each in (("all", recognised), *own.items())}
    settings = (spec.columns, spec.max_length, spec.max_examples, spec.template, seed, table.name, shapes, grouping)
    origin = origin_of(tokenizer, settings, _everything(parts))
    if known is not None and (dataset := recalled(known, origin)) is not None:
        return dataset
    chosen = _chosen(*parts, limit=spec.max_examples, seed=seed)
    keys = [key for part in chosen for key in part]
    template = template_for(tokenizer, recognised.shape, tuple(by_key.values()), spec.template)
    max_length = min(spec.max_length, tokenizer.model_max_length)
    encoding = encode([by_key[key] for key in keys], template, tokenizer, max_length)
    if too_many(encoding.problems, len(keys)):
        other = f", or give another --template than {spec.template.name}" if spec.template else ""
        raise refuse(table.name, encoding.problems, len(keys), f"Mend or remove these rows{other}.")
    unusable = (recognised.problems, *(part.problems for part in own.values()), encoding.problems)
    problems = tuple(itertools.chain.from_iterable(unusable))
    encoded = {
        key: [replace(each, group=key.group_number) for each in parts]
        for key, parts in zip(keys, encoding.encoded, strict=True)
        if parts
    }
    splits = _split([{key: len(encoded[key]) for key in part if key in encoded} for part in chosen])
    if len(encoded) < FEWEST_ROWS or not all(splits):
        raise _too_little(table.name, spec, max_length, len(encoded), encoding.dropped_lengths)
    counts = Counts(
        read=len(table.train) + len(table.validation) + len(table.test),
        duplicates=sum(part.duplicates for part in parts),
        leaked=sum(part.leaked for part in parts),
        not_sampled=len(by_key) - len(keys),
        truncated=encoding.truncated,
        dropped=len(encoding.dropped_lengths),
        rewritten=encoding.copied,
        copies=encoding.copies,
        turns_cut=sum(example.turns_cut for example in by_key.values()),
        unusable=len(problems),
    )
    train, validation, test = (Examples.of(_in_order(split, encoded)) for split in splits)
    dataset = Dataset(
        name=table.name,
        shape=str(recognised.shape),
        train=train,
        validation=validation,
        test=test,
        fingerprint=_fingerprint(recognised.shape, spec.template, *parts),
        notes=(),
        stop_ids=tuple(sorted(encoding.stops)),
        template=template.description,
        chat_template=template.jinja,
        max_length=max_length,
        counts=counts,
        origin=origin,
    )
    brought = [name for name, part in (("validation", parts[1]), ("test", parts[2])) if part.examples]
    notes = _notes(dataset, recognised, template.notes, encoding.adapted, spec, brought, grouping, problems)
    return replace(dataset, notes=tuple(notes))


def _distinct(
    recognised: Recognised, own: Mapping[str, Recognised]
) -> tuple[tuple[Distinct, Distinct, Distinct], Grouping]:
    """((train, validation, test), what rows of one group have in common). What stands in two splits stays in the one
    that measures.

    Where there are too few groups to divide, or most training rows belong to one that is measured on too, groups are
    narrower.
    """
    measured = {split: own[split].examples if split in own else () for split in ("validation", "test")}
    for grouping in Grouping:
        test = without_duplicates(measured["test"], grouping=grouping)
        validation = without_duplicates(measured["validation"], test, grouping=grouping)
        train = without_duplicates(recognised.examples, test, validation, grouping=grouping)
        parts = (train, validation, test)
        groups = {key.group for part in parts for key in part.examples}
        enough = len(groups) >= FEWEST_ROWS and 2 * train.leaked <= len(recognised.examples)
        if recognised.shape is Shape.TEXT or (enough and not _asked_by_the_system(grouping, parts, len(groups))):
            break
    return parts, grouping


def _asked_by_the_system(grouping: Grouping, parts: Sequence[Distinct], questions: int) -> bool:
    """Whether rows are told apart by their system messages: a document each, and one of a few stock questions."""
    if grouping is not Grouping.QUESTION or sum(len(part.examples) for part in parts) <= MOST_SYSTEMS * questions:
        return False
    prompts = {key_of(each, Grouping.PROMPT).group for part in parts for each in part.examples.values()}
    return len(prompts) > MOST_SYSTEMS * questions


def _everything(parts: Sequence[Distinct]) -> Iterator[object]:
    for part in parts:
        yield part.duplicates, part.leaked
        yield from part.examples.items()


def _chosen(
    train: Distinct, validation: Distinct, test: Distinct, *, limit: int | None, seed: int
) -> tuple[list[Key], list[Key], list[Key]]:
    """Keys of the rows to use: `limit` in all, of which a split that the data set brings gets a tenth."""
    if limit is None:
        return list(train.examples), list(validation.examples), list(test.examples)
    share = max(1, round(SHARE * limit))
    measuring = [sampled(part.examples, share, seed) for part in (validation, test)]
    room = limit - sum(map(len, measuring))
    return sampled(train.examples, room, seed), measuring[0], measuring[1]


def _split(chosen: list[dict[Key, int]]) -> tuple[list[Key], list[Key], list[Key]]:
    """(train, validation, test) of keys that stand for so many examples each; what the data set does not bring is taken
    from the first."""
    sizes = chosen[0]
    train, validation, test = map(list, chosen)
    if not validation and not test:
        train, validation, test = divided(sizes)
    elif not test:
        train, test = held_out(sizes, "test")
    elif not validation:
        train, validation = held_out(sizes, "validation")
    return train, validation, test


def _in_order(split: Sequence[Key], encoded: Mapping[Key, Sequence[Encoded]]) -> list[Encoded]:
    """In an order that content decides. Copies of one conversation stand apart: what looks at the first so many is to
    see as many conversations."""
    copies = {
        key._replace(content=f"{key.content} {number}") if number else key: example
        for key in split
        for number, example in enumerate(encoded[key])
    }
    return [copies[key] for key in ranked(copies, "order")]


def _too_little(name: str, spec: DataSpec, max_length: int, left: int, dropped: tuple[int, ...]) -> DataError:
    if not dropped:
        return DataError(f"{_count(left, 'row')} of {name} are left, too few to split.", "Raise --max-examples.")
    few = "No answer" if not left else f"Only {_count(left, 'answer')}"
    message = (
        f"{few} of {name} begins within the first {max_length} tokens, so there is nothing to learn from the rest."
    )
    if max_length < spec.max_length:
        return DataError(message, "That is as long as this model reads; shorten the prompts or use another model.")
    enough = 1 << (int(statistics.median(dropped)) - 1).bit_length()
    return DataError(message, f"Give --max-length {enough}, which holds half of these rows whole.")


def _fingerprint(shape: Shape, template: ChatTemplate | None, *parts: Distinct) -> str:
    digest = hashlib.sha256(shape.encode())
    if template:
        digest.update(b"\0" + template.text.encode())
    for part in parts:
        digest.update(b"|")
        for key in sorted(part.examples):
            digest.update(key.content.encode() + key.exact.encode())
    return digest.hexdigest()[:16]


def _notes(
    dataset: Dataset,
    recognised: Recognised,
    of_template: Sequence[str],
    adapted: Mapping[str, int],
    spec: DataSpec,
    own: Sequence[str],
    grouping: Grouping,
    problems: Sequence[Problem],
) -> Iterator[str]:
    """`of_template` is said of the template; `adapted` says what was done for it or left out by it, and in how many
    rows; `own` are the splits that the data set brings; `grouping` says which rows are kept in one split; those of
    `problems` are left out."""
    counts, max_length = dataset.counts, dataset.max_length
    yield f"{_count(counts.read, 'row')} of {dataset.shape} ({', '.join(recognised.columns)})."
    if recognised.columns == TEXT_AND_LABEL:
        yield "The label is learned as the answer to the text; remove that column to learn the text itself."
    if spec.columns:
        yield f"Columns by other names: {', '.join(f'{theirs} is {ours}' for theirs, ours in spec.columns.items())}."
    for what, names in (("Columns", recognised.unused), ("Keys of messages", recognised.ignored)):
        if names:
            shown = ", ".join(names[:MOST_COLUMNS]) + (", …" if len(names) > MOST_COLUMNS else "")
            yield f"{what} not used: {shown}."
    yield f"Template: {dataset.template}."
    yield from of_template
    for change, times in adapted.items():
        yield f"In {_count(times, 'row')} {change}."
    if problems:
        yield left_out(problems)
    if counts.duplicates:
        yield f"{_count(counts.duplicates, 'duplicate row')} dropped."
    if counts.leaked:
        same = "say" if grouping is Grouping.CONTENT else "ask"
        yield f"{_count(counts.leaked, 'row')} dropped because validation or test {same} the same."
    if grouping is Grouping.PROMPT:
        yield (
            "Few different questions: one that trains may be asked in validation and test too, under another system "
            "message."
        )
    if grouping is Grouping.CONTENT:
        yield "Few different prompts: one that trains may be asked in validation and test too, with another answer."
    if counts.not_sampled:
        yield f"{_count(counts.not_sampled, 'row')} left out by --max-examples."
    if max_length < spec.max_length and (counts.truncated or counts.dropped):
        yield f"The tokenizer's largest length, {max_length} tokens, is used instead of {spec.max_length}."
    if counts.truncated:
        yield f"{_count(counts.truncated, 'row')} cut to {max_length} tokens."
    if counts.dropped:
        yield f"{_count(counts.dropped, 'row')} dropped because the answer begins after {max_length} tokens."
    if counts.turns_cut:
        yield f"{_count(counts.turns_cut, 'message')} before the first question or after the last answer left out."
    if counts.rewritten:
        yield (
            f"In {_count(counts.rewritten, 'conversation')} every answer is learned from a copy of its own that ends "
            f"there, {_count(counts.copies, 'example')} in all: the chat template writes earlier answers differently "
            "once others follow. Long conversations are read as often as they have answers."
        )
    brought = f"; {' and '.join(own)} as the data set brings them" if own else ""
    trained = f"{len(dataset.train):,} {'examples' if counts.copies else 'rows'} train"
    yield (f"{trained}, {len(dataset.validation):,} validate, {len(dataset.test):,} test (split by content{brought}).")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
