"""A data set, ready to train on: read, recognised, freed of duplicates, encoded and split."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bandsearch.data.encoding import Encoding, encode
from bandsearch.data.examples import Counts, Dataset, Encoded, Examples
from bandsearch.data.gathered import Gathered, gather
from bandsearch.data.kept import origin_of, recalled
from bandsearch.data.problems import Problem, left_out, refuse, too_many
from bandsearch.data.shapes import Shape
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
from bandsearch.values.spec import DEFAULT_LENGTH, ChatTemplate, DataSpec

__all__ = ["Counts", "Dataset", "Encoded", "Examples", "prepare"]

FEWEST_ROWS = 10
# System messages per question, on average; with more of them it is they that ask.
MOST_SYSTEMS = 10
# By default at most one row in so many may be too long.
LONG_SHARE = 5


def prepare(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    known: Path | None = None,
    context: int | None = None,
) -> Dataset:
    """Read a data set and make it ready to train on. Raises DataError, and UsageError for a template of no use.

    No example has more tokens than the model's `context`, where that is known. Where `spec` does not say how many are
    read of a row, and the default would cut or drop more than one in LONG_SHARE, the data set is refused.

    Where the file `known` keeps what would come of these rows, they are read but not encoded again: encoding is nine
    tenths of the time.

    `seed` chooses the rows where `spec.max_examples` leaves some out; which split a row belongs to depends on its
    content alone. Splits that the data set brings are used as they are, without rows that ask what another one asks.
    """
    longest = min(tokenizer.model_max_length, context or tokenizer.model_max_length)
    max_length = min(spec.max_length or DEFAULT_LENGTH, longest)
    gathered = gather(spec)
    parts, grouping = _distinct(gathered)
    by_key = {key: example for part in parts for key, example in part.examples.items()}
    different = len({key.content for key in by_key})
    if different < FEWEST_ROWS:
        raise DataError(
            f"{gathered.name} holds {_count(different, 'different row')}, too few to train, validate and test on.",
            f"Give at least {FEWEST_ROWS}, better some hundreds.",
        )
    if not parts[0].examples:
        raise DataError(
            f"All training rows of {gathered.name} stand in its validation or test rows too, so none is left.",
            "Give other rows to measure on, or none: then some of these are kept for it.",
        )
    settings = (max_length, spec.max_length, spec.max_examples, spec.template, seed, gathered.settings, grouping)
    origin = origin_of(tokenizer, settings, _everything(parts))
    if known is not None and (dataset := recalled(known, origin)) is not None:
        return dataset
    chosen = _chosen(*parts, limit=spec.max_examples, seed=seed)
    keys = [key for part in chosen for key in part]
    template = template_for(tokenizer, gathered.shape, tuple(by_key.values()), spec.template)
    encoding = encode([by_key[key] for key in keys], template, tokenizer, max_length)
    if too_many(encoding.problems, len(keys)):
        other = f", or give another --template than {spec.template.name}" if spec.template else ""
        raise refuse(gathered.name, encoding.problems, len(keys), f"Mend or remove these rows{other}.")
    problems = (*gathered.problems, *encoding.problems)
    encoded = {
        key: [replace(each, group=key.group_number) for each in parts]
        for key, parts in zip(keys, encoding.encoded, strict=True)
        if parts
    }
    splits = _split([{key: len(encoded[key]) for key in part if key in encoded} for part in chosen])
    if len(encoded) < FEWEST_ROWS or not all(splits):
        raise _too_little(gathered.name, max_length, longest, len(encoded), encoding.dropped_lengths)
    if spec.max_length is None and LONG_SHARE * (encoding.truncated + len(encoding.dropped_lengths)) > len(keys):
        raise _too_long(gathered.name, encoding, max_length, longest)
    counts = Counts(
        read=gathered.read,
        duplicates=sum(part.duplicates for part in parts),
        leaked=sum(part.leaked for part in parts),
        not_sampled=len(by_key) - len(keys),
        truncated=encoding.truncated,
        dropped=len(encoding.dropped_lengths),
        rewritten=encoding.copied,
        copies=encoding.copies,
        turns_cut=sum(example.turns_cut for example in by_key.values()),
        unusable=len(problems),
        marked_bad=gathered.marked_bad,
        divided=encoding.divided,
        pieces=encoding.pieces,
    )
    train, validation, test = (Examples.of(_in_order(split, encoded)) for split in splits)
    dataset = Dataset(
        name=gathered.name,
        shape=gathered.shapes,
        train=train,
        validation=validation,
        test=test,
        fingerprint=_fingerprint(gathered.shapes, spec.template, *parts),
        notes=(),
        stop_ids=tuple(sorted(encoding.stops)),
        template=template.description,
        chat_template=template.jinja,
        max_length=max_length,
        counts=counts,
        origin=origin,
    )
    brought = [name for name, part in (("validation", parts[1]), ("test", parts[2])) if part.examples]
    notes = _notes(dataset, template.notes, encoding.adapted, spec, brought, grouping, problems)
    return replace(dataset, notes=(*gathered.notes, *notes))


def _distinct(gathered: Gathered) -> tuple[tuple[Distinct, Distinct, Distinct], Grouping]:
    """((train, validation, test), what rows of one group have in common). What stands in two splits stays in the one
    that measures.

    Where there are too few groups to divide, or most training rows belong to one that is measured on too, groups are
    narrower.
    """
    for grouping in Grouping:
        test = without_duplicates(gathered.test, grouping=grouping)
        validation = without_duplicates(gathered.validation, test, grouping=grouping)
        train = without_duplicates(gathered.train, test, validation, grouping=grouping)
        parts = (train, validation, test)
        groups = {key.group for part in parts for key in part.examples}
        enough = len(groups) >= FEWEST_ROWS and 2 * train.leaked <= len(gathered.train)
        if gathered.shape is Shape.TEXT or (enough and not _asked_by_the_system(grouping, parts, len(groups))):
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


def _too_little(name: str, max_length: int, longest: int, left: int, dropped: tuple[int, ...]) -> DataError:
    if not dropped:
        return DataError(f"{_count(left, 'row')} of {name} are left, too few to split.", "Raise --max-examples.")
    few = "No answer" if not left else f"Only {_count(left, 'answer')}"
    message = (
        f"{few} of {name} begins within the first {max_length} tokens, so there is nothing to learn from the rest."
    )
    if max_length == longest:
        return DataError(message, "That is as long as this model reads; shorten the prompts or use another model.")
    enough = 1 << (int(statistics.median(dropped)) - 1).bit_length()
    return DataError(message, f"Give --max-length {enough}, which holds half of these rows whole.")


def _too_long(name: str, encoding: Encoding, max_length: int, longest: int) -> DataError:
    lengths, dropped = sorted(encoding.lengths), len(encoding.dropped_lengths)
    message = (
        f"{encoding.truncated + dropped:,} of {_count(len(lengths), 'row')} of {name} are longer than {max_length} "
        f"tokens, so {encoding.truncated:,} would be cut and {dropped:,} dropped."
    )
    as_it_is = f"or go on without what is cut: --max-length {max_length}."
    # What nearly all fit into, in steps that leave the few a little longer whole too.
    enough = min(-(-lengths[-(-99 * len(lengths) // 100) - 1] // 64) * 64, longest)
    if enough <= max_length:
        return DataError(message, f"That is as long as this model reads; shorten the rows, {as_it_is}")
    whole = sum(length <= enough for length in lengths) / len(lengths)
    return DataError(message, f"Give --max-length {enough}, which holds {whole:.0%} of them whole, {as_it_is}")


def _fingerprint(shape: str, template: ChatTemplate | None, *parts: Distinct) -> str:
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
    yield f"Template: {dataset.template}."
    yield from of_template
    for change, times in adapted.items():
        yield f"In {_count(times, 'row')} {change}."
    if counts.marked_bad:
        yield (
            f"{_count(counts.marked_bad, 'row')} left out whose label says that the answer is a bad one; --columns "
            "label=mark has all of them learned."
        )
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
    asked = spec.max_length or DEFAULT_LENGTH
    if max_length < asked and (counts.truncated or counts.dropped):
        yield f"The model's largest length, {max_length} tokens, is used instead of {asked}."
    if counts.truncated:
        yield f"{_count(counts.truncated, 'row')} cut to {max_length} tokens."
    if counts.dropped:
        yield f"{_count(counts.dropped, 'row')} dropped because the answer begins after {max_length} tokens."
    if counts.divided:
        texts = f"{_count(counts.divided, 'text')} of more than {max_length} tokens"
        yield f"{texts} divided into {counts.pieces:,} pieces; those of one text are in one split."
    if counts.turns_cut:
        yield f"{_count(counts.turns_cut, 'message')} before the first question or after the last answer left out."
    if counts.rewritten:
        yield (
            f"In {_count(counts.rewritten, 'conversation')} every answer is learned from a copy of its own that ends "
            f"there, {_count(counts.copies, 'example')} in all: the chat template writes earlier answers differently "
            "once others follow. Long conversations are read as often as they have answers."
        )
    brought = f"; {' and '.join(own)} as the data set brings them" if own else ""
    trained = f"{len(dataset.train):,} {'examples' if counts.copies or counts.pieces else 'rows'} train"
    yield (f"{trained}, {len(dataset.validation):,} validate, {len(dataset.test):,} test (split by content{brought}).")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
