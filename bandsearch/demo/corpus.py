"""Generated text the embedded decoder is pre-trained on: arithmetic, strings, look-ups and a little English."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

NAMES = "Ann Ben Cat Dan Eve Fay Gus Hal Ian Joy Kim Leo Meg Ned Oda Pam Ray Sue Tom Una".split()
THINGS = "apples books cards coins eggs hats keys pens cups toys".split()
WORDS = (
    "red blue green tree house river stone cloud bread horse light night water paper glass music garden window "
    "market winter"
).split()
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()

Pair = tuple[str, str]

# The mixture as a data set of plain texts, drawn with a seed that no phase of the pre-training used.
CORPUS = "corpus"
HELD_OUT_SEED = 1_000
HELD_OUT_TEXTS = 400


@dataclass(frozen=True)
class Skill:
    """A kind of text; `share` of the mixture. `write` gives a prompt and the answer that follows it."""

    share: float
    write: Callable[[random.Random], Pair]


def number_word(number: int) -> str:
    """0 to 99 in words: 42 is "forty two"."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {ONES[ones]}" if ones else "")


def _arithmetic(source: random.Random) -> Pair:
    kind = source.randrange(3)
    limit = 12 if kind == 2 else 50
    left, right = source.randint(0, limit), source.randint(0, limit)
    if kind == 1:
        left, right = max(left, right), min(left, right)
    sign, word = (("+", "plus"), ("-", "minus"), ("*", "times"))[kind]
    value = (left + right, left - right, left * right)[kind]
    return source.choice(
        (
            (f"{left} {sign} {right} =", f" {value}"),
            (f"{left}{sign}{right}=", f"{value}"),
            (f"What is {left} {word} {right}?", f" {value}"),
            (f"Compute {left} {sign} {right}.", f" {value}"),
        )
    )


def _word_problem(source: random.Random) -> Pair:
    name, thing = source.choice(NAMES), source.choice(THINGS)
    first, second = source.randint(1, 50), source.randint(1, 50)
    if source.random() < 0.5:
        return f"{name} has {first} {thing}. {name} gets {second} more. How many {thing}?", f" {first + second}"
    first, second = max(first, second), min(first, second)
    return f"{name} has {first} {thing}. {name} loses {second}. How many {thing}?", f" {first - second}"


def _chain(source: random.Random) -> Pair:
    one, two = source.sample("abcdefgh", 2)
    start, change = source.randint(0, 30), source.randint(0, 20)
    if source.random() < 0.5:
        return f"{one} = {start}; {two} = {one} + {change}; {two} =", f" {start + change}"
    start, change = max(start, change), min(start, change)
    return f"{one} = {start}; {two} = {one} - {change}; {two} =", f" {start - change}"


def _strings(source: random.Random) -> Pair:
    letters = [source.choice("abcdefghij") for _ in range(source.randint(3, 6))]
    what, answer = source.choice(
        (
            ("reverse", " ".join(reversed(letters))),
            ("copy", " ".join(letters)),
            ("first", letters[0]),
            ("last", letters[-1]),
        )
    )
    return f"{what}: {' '.join(letters)} ->", f" {answer}"


def _lookup(source: random.Random) -> Pair:
    keys = source.sample("abcdefghijklmnop", source.randint(2, 4))
    values = [source.randint(0, 99) for _ in keys]
    asked = source.randrange(len(keys))
    listed = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    return f"{listed}. {keys[asked]}?", f" {values[asked]}"


def _counting(source: random.Random) -> Pair:
    start, step = source.randint(0, 60), source.choice((1, 1, 2, 5, 10))
    sequence = [str(start + index * step) for index in range(6)]
    return f"count: {' '.join(sequence[:3])}", f" {' '.join(sequence[3:])}"


def _number_words(source: random.Random) -> Pair:
    number = source.randint(0, 99)
    if source.random() < 0.5:
        return f"{number} in words:", f" {number_word(number)}"
    return f"{number_word(number)} in digits:", f" {number}"


def _english(source: random.Random) -> Pair:
    name, other, word = source.choice(NAMES), source.choice(NAMES), source.choice(WORDS)
    color = source.choice(WORDS[:3])
    return source.choice(
        (
            (f"{name} sees a {color} {word}. What does {name} see?", f" a {color} {word}"),
            (f"{name} gives the {word} to {other}. Who has the {word}?", f" {other}"),
            (f"{name} likes the {word}. Who likes the {word}?", f" {name}"),
        )
    )


def _compare(source: random.Random) -> Pair:
    first, second = source.randint(0, 99), source.randint(0, 99)
    if source.random() < 0.5:
        return f"larger of {first} and {second}:", f" {max(first, second)}"
    return f"smaller of {first} and {second}:", f" {min(first, second)}"


SKILLS: Mapping[str, Skill] = {
    "arithmetic": Skill(0.26, _arithmetic),
    "word_problem": Skill(0.15, _word_problem),
    "chain": Skill(0.13, _chain),
    "strings": Skill(0.12, _strings),
    "lookup": Skill(0.12, _lookup),
    "counting": Skill(0.05, _counting),
    "number_words": Skill(0.06, _number_words),
    "english": Skill(0.07, _english),
    "compare": Skill(0.04, _compare),
}


def pairs(seed: int, skills: Mapping[str, Skill] = SKILLS) -> Iterator[Pair]:
    """Prompts and answers from the mixture, without end."""
    source = random.Random(seed)
    writers = [skill.write for skill in skills.values()]
    shares = [skill.share for skill in skills.values()]
    while True:
        yield source.choices(writers, shares)[0](source)


def held_out() -> list[dict[str, str]]:
    """Different texts from the mixture, each a prompt with its answer, as the decoder was pre-trained on."""
    found: dict[str, None] = {}
    for prompt, answer in pairs(HELD_OUT_SEED):
        found.setdefault(prompt + answer)
        if len(found) == HELD_OUT_TEXTS:
            break
    return [{"text": text} for text in found]
