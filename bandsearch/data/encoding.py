"""Tokens of examples, and which of them are to be learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, takewhile

import numpy as np
from transformers import PreTrainedTokenizerBase

from bandsearch.data.examples import Encoded
from bandsearch.data.heard import heard
from bandsearch.data.problems import Problem
from bandsearch.data.shapes import Example
from bandsearch.data.template import Template, TemplateRefusedError

# Tokens at the end of a prompt that may merge with the answer, or that a template writes only to open an answer
# (an empty thinking block). More than that, and the template has rewritten the prompt.
_BORDER = 8
# Encoded together: what a tokenizer gives back takes a hundred bytes a token until it is put into arrays.
_CHUNK = 512
THOUGHT_LOST = "the thought before the answer is not learned: the template leaves it out"
OPENED_OTHERWISE = (
    "the answer is learned without {}, with which a server that writes by this template opens it; --template takes one "
    "that writes both alike"
)


@dataclass(frozen=True)
class Encoding:
    """`encoded` runs along the examples: one each, but as many as it has answers for the `copied` conversations, whose
    earlier answers the chat template writes differently once others follow; `copies` in all. Each of these is the
    conversation up to an answer, as a server writes it when it is asked for that answer. There is none of an answer
    that lies wholly beyond the largest length. The `divided` plain texts are longer than that, and are in `pieces` of
    about equal length.

    `lengths` are the full lengths of all, `dropped_lengths` those of examples of which nothing is left. `stops` are the
    tokens that end an answer.
    `adapted` says what was changed for the template or left out by it, and in how many examples.
    """

    encoded: tuple[tuple[Encoded, ...], ...]
    truncated: int
    lengths: tuple[int, ...]
    dropped_lengths: tuple[int, ...]
    copied: int
    copies: int
    divided: int
    pieces: int
    stops: frozenset[int]
    problems: tuple[Problem, ...]
    adapted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Written:
    """An example as text. `openings[i]` ends where its i-th answer begins, `closings[i]` where that answer ends."""

    whole: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    thought_lost: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.whole, *self.openings, *self.closings)


@dataclass(frozen=True)
class _Piece:
    """What comes of a conversation or text. It is `encoded`, a long text in several pieces, unless it has a `problem`,
    its earlier answers were `rewritten` by the later turns, or all lie beyond the largest length. `length` is its own,
    in tokens; `lost` is what should be said of what is not learned."""

    encoded: tuple[Encoded, ...] = ()
    length: int = 0
    problem: str = ""
    rewritten: bool = False
    lost: tuple[str, ...] = ()


def encode(
    examples: Sequence[Example], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoding:
    """Encode `examples`: conversations cut at `max_length` tokens, plain texts in pieces of at most so many.

    The tokens of an answer are those of the whole text that come after the tokens of the text before it. Where a
    token reaches across that border, the answer begins with it. An answer ends with the token that ends a turn and, at
    the end of a conversation, with the end of text, so that generation stops.
    """
    encoder = _Encoder(template, tokenizer, max_length)
    for start in range(0, len(examples), _CHUNK):
        encoder.add(examples[start : start + _CHUNK])
    return Encoding(
        tuple(encoder.encoded),
        encoder.truncated,
        tuple(encoder.lengths),
        tuple(encoder.dropped_lengths),
        encoder.copied,
        encoder.copies,
        encoder.divided,
        encoder.pieces,
        frozenset(encoder.stops),
        tuple(encoder.problems),
        encoder.adapted,
    )


class _Encoder:
    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._specials = _special_tokens(tokenizer)
        self._is_blank = lru_cache(maxsize=None)(lambda token: not tokenizer.decode([token]).strip())
        self.encoded: list[tuple[Encoded, ...]] = []
        self.truncated = 0
        self.lengths: list[int] = []
        self.dropped_lengths: list[int] = []
        self.copied = self.copies = self.divided = self.pieces = 0
        self.stops: set[int] = set()
        self.problems: list[Problem] = []
        self.adapted: Counter[str] = Counter()

    def add(self, examples: Sequence[Example]) -> None:
        examples = [self._adapt(example) for example in examples]
        for example, piece in zip(examples, self._pieces(examples), strict=True):
            if not piece.rewritten:
                self._settle(example, [piece])
                continue
            parts, pieces = _parts(example), []
            for start in range(0, len(parts), _CHUNK):
                pieces += self._pieces(parts[start : start + _CHUNK])
            if kept := self._settle(example, pieces):
                self.copied += 1
                self.copies += kept

    def _settle(self, example: Example, pieces: Sequence[_Piece]) -> int:
        """Take what has come of an example; how many are to be learned from."""
        problem = next((piece.problem for piece in pieces if piece.problem), "")
        kept = () if problem else tuple(each for piece in pieces for each in piece.encoded)
        self.encoded.append(kept)
        if problem:
            self.problems.append(Problem(example.place, problem))
            return 0
        self.adapted.update(list(dict.fromkeys(loss for piece in pieces for loss in piece.lost)))
        length = max(piece.length for piece in pieces)
        self.lengths.append(length)
        if not kept:
            self.dropped_lengths.append(length)
        elif not example.messages:
            self.divided += len(kept) > 1
            self.pieces += len(kept) if len(kept) > 1 else 0
        elif length > self._max_length:
            self.truncated += 1
        return len(kept)

    def _pieces(self, examples: Sequence[Example]) -> list[_Piece]:
        written = [self._write(example) for example in examples]
        tokens = iter(self._tokenize([text for each in written if isinstance(each, _Written) for text in each.texts]))
        pieces = []
        for example, texts in zip(examples, written, strict=True):
            if isinstance(texts, str):
                pieces.append(_Piece(problem=texts))
                continue
            whole = next(tokens)
            openings, closings = list(islice(tokens, len(texts.openings))), list(islice(tokens, len(texts.closings)))
            piece = self._encode(example, whole, openings, closings)
            pieces.append(replace(piece, lost=(THOUGHT_LOST, *piece.lost)) if texts.thought_lost else piece)
        return pieces

    def _adapt(self, example: Example) -> Example:
        for adaptation in self._template.adaptations:
            messages = adaptation.change(example.messages)
            if messages != example.messages:
                self.adapted[adaptation.reason] += 1
                example = replace(example, messages=messages)
        return example

    def _write(self, example: Example) -> _Written | str:
        """An example as text, or what is wrong with it."""
        render, ending = self._template.render, self._template.ending
        count, answers = len(example.messages), example.answers
        said = [example.messages[index] for index in answers]
        try:
            whole = render(example, count, False).removesuffix(ending)
            openings = tuple(render(example, index, True) for index in answers)
            written = _Written(
                whole=whole,
                openings=openings,
                closings=tuple(render(example, index + 1, False).removesuffix(ending) for index in answers[:-1]),
                thought_lost=not all(_stands_in(answer.thought, whole) for answer in said),
            )
            "".join(written.texts).encode()
        except TemplateRefusedError as refusal:
            return str(refusal)
        except UnicodeEncodeError:
            return "holds half of a surrogate pair"
        if not all(_stands_in(message.answer, whole) for message in said):
            return "the template leaves an answer out"
        return written

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        ids: list[list[int]] = heard(
            lambda: self._tokenizer(texts, add_special_tokens=False, **only_ids)["input_ids"],
        )
        return ids

    def _encode(
        self, example: Example, whole: list[int], openings: list[list[int]], closings: list[list[int]]
    ) -> _Piece:
        if not example.messages:
            return self._finish(example, whole, [(0, len(whole))])
        starts = [_common(opening, whole) for opening in openings]
        if len(openings[-1]) - starts[-1] > _BORDER:
            message = "the chat template writes the question differently once it is answered, so no mask can be found"
            return _Piece(problem=message)
        ends = [*(_common(closing, whole) for closing in closings), len(whole)]
        spans = list(zip(starts, ends, strict=True))
        kept = all(
            len(tokens) - found <= _BORDER
            for tokens, found in zip((*openings, *closings), (*starts, *ends[:-1]), strict=True)
        )
        if len(spans) > 1 and not (kept and all(start < end for start, end in spans)):
            return _Piece(rewritten=True)
        unwritten = self._unwritten(openings[-1][starts[-1] :], whole[starts[-1] :])
        lost = (OPENED_OTHERWISE.format(repr(unwritten)),) if unwritten else ()
        return replace(self._finish(example, whole, spans), lost=lost)

    def _unwritten(self, opening: list[int], answer: list[int]) -> str:
        """What a server writes to open an answer that begins with other tokens; none where they only merge with it."""
        if not opening:
            return ""
        text = str(self._tokenizer.decode(opening))
        written = str(self._tokenizer.decode(answer[: len(opening) + _BORDER]))
        return text if text.strip() and not written.startswith(text) else ""

    def _finish(self, example: Example, whole: list[int], spans: list[tuple[int, int]]) -> _Piece:
        """`spans` are the answers in `whole`, ascending; the last one runs to its end."""
        spans = [(start, self._turn_end(whole, start, end)) for start, end in spans]
        whole = whole[: spans[-1][1]]
        eos = self._tokenizer.eos_token_id
        if eos is not None and whole[-1] != eos:
            whole.append(eos)
            spans[-1] = (spans[-1][0], len(whole))
        self.stops.update(takewhile(self._specials.__contains__, reversed(whole)))
        prefix = self._template.prefix
        if tuple(whole[: len(prefix)]) == prefix:
            prefix = ()
        whole = [*prefix, *whole]
        if not example.messages:
            return _Piece(tuple(self._divided(example.place, whole)), len(whole))
        spans = [(start + len(prefix), end + len(prefix)) for start, end in spans]
        supervised = np.zeros(min(len(whole), self._max_length), np.bool_)
        for start, end in spans:
            supervised[start:end] = True
        supervised[0] = False
        if not supervised.any():
            return _Piece(length=len(whole))
        prompt_length, answer = self._question(example, whole, spans)
        ids = np.array(whole[: self._max_length], np.int32)
        return _Piece((Encoded(ids, supervised, prompt_length, answer, example.place),), len(whole))

    def _divided(self, place: str, whole: list[int]) -> Iterator[Encoded]:
        """Each piece of a text begins with what is put in front of texts or, where that is nothing, with the last token
        of the piece before: every token is predicted once."""
        opening = self._template.prefix
        context = len(opening) or 1
        rest = whole[context:]
        # Of about equal length, since a last piece of a token or two teaches little.
        count = -(-len(rest) // (self._max_length - context))
        size = -(-len(rest) // max(count, 1))
        for start in range(0, len(rest), max(size, 1)):
            ids = [*(opening or whole[start : start + 1]), *rest[start : start + size]]
            supervised = np.arange(len(ids)) >= context
            yield Encoded(np.array(ids, np.int32), supervised, 0, "", place)

    def _question(self, example: Example, whole: list[int], spans: list[tuple[int, int]]) -> tuple[int, str]:
        """How many tokens stand before the last answer that begins within the largest length, and that answer."""
        answers = zip(spans, example.answers, strict=True)
        (start, end), index = [each for each in answers if each[0][0] < self._max_length][-1]
        message = example.messages[index]
        if message.extras.get("tool_calls"):
            return start, str(self._tokenizer.decode(whole[start:end], skip_special_tokens=True)).strip()
        return start, message.content

    def _turn_end(self, whole: list[int], start: int, end: int) -> int:
        """Where an answer ends: after the token that ends the turn, if only blanks follow it."""
        last = end
        while last > start and whole[last - 1] not in self._specials and self._is_blank(whole[last - 1]):
            last -= 1
        return last if last > start and whole[last - 1] in self._specials else end


def _parts(example: Example) -> list[Example]:
    """A conversation up to each of its answers, which alone is to be learned."""
    context = [replace(message, learned=False) for message in example.messages]
    return [replace(example, messages=(*context[:index], example.messages[index])) for index in example.answers]


def _stands_in(part: str, whole: str) -> bool:
    """Whether `whole` holds `part` but for white space, which templates trim."""
    return part.strip() in whole or " ".join(part.split()) in " ".join(whole.split())


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    if list(second[: len(first)]) == list(first):
        return len(first)
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added: Iterable[int] = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*tokenizer.all_special_ids, *added))
