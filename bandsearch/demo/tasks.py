"""Generated instruction tasks: what the embedded base cannot do and a LoRA learns in a minute or two."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bandsearch.demo.corpus import NAMES, THINGS, number_word
from bandsearch.values.errors import UsageError

COUNT = 2400

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """`control` marks a task on which no depth is better than another."""

    name: str
    description: str
    write: Callable[[random.Random], tuple[str, str]]
    control: bool = False


def _two_step(source: random.Random) -> tuple[str, str]:
    name, thing = source.choice(NAMES), source.choice(THINGS)
    start, gained = source.randint(5, 40), source.randint(1, 30)
    lost = source.randint(1, start + gained - 1)
    between, end = start + gained, start + gained - lost
    return (
        f"{name} has {start} {thing}. {name} gets {gained} more and loses {lost}. How many {thing} are left?",
        f"{start} + {gained} = {between}; {between} - {lost} = {end} #### {end}",
    )


def _words(source: random.Random) -> tuple[str, str]:
    left, right = source.randint(0, 50), source.randint(0, 49)
    return f"Say {left} plus {right} in words.", number_word(left + right)


def _symbol(source: random.Random) -> tuple[str, str]:
    left, right = source.randint(1, 50), source.randint(0, 49)
    if source.random() < 0.5:
        return f"{left} @ {right} =", str(left + right)
    left, right = max(left, right), min(left, right)
    return f"{left} ~ {right} =", str(left - right)


def _larger_plus(source: random.Random) -> tuple[str, str]:
    first, second, added = source.randint(0, 60), source.randint(0, 60), source.randint(1, 9)
    return f"larger of {first} and {second}, plus {added}:", str(max(first, second) + added)


def _swap(source: random.Random) -> tuple[str, str]:
    letters = [source.choice("abcdefghij") for _ in range(source.randint(4, 5))]
    swapped = [letters[-1], *letters[1:-1], letters[0]]
    return f"swap: {' '.join(letters)} ->", " ".join(swapped)


def _toss(source: random.Random) -> tuple[str, str]:
    number = source.randint(0, 99_999)
    return f"toss {number}:", source.choice(("red", "blue"))


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("two_step", "two-step word problems with a rationale and a final number, as in GSM8K", _two_step),
        Task("words", "a sum, answered in words", _words),
        Task("symbol", "plus and minus under new signs", _symbol),
        Task("larger_plus", "the larger of two numbers, and some more", _larger_plus),
        Task("swap", "a list with its first and last letter exchanged", _swap),
        Task("toss", "red or blue at random: only the form of the answer can be learned", _toss, control=True),
    )
}


def rows(task: str, count: int = COUNT, seed: int = 0) -> list[Row]:
    """`count` different prompts with their completions, the same for the same seed on every machine.

    Raises UsageError for a task that does not exist.
    """
    if task not in TASKS:
        raise UsageError(f"There is no demo task {task!r}.", f"Choose from {', '.join(TASKS)}.")
    source = random.Random(f"{task} {seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        prompt, completion = TASKS[task].write(source)
        found.setdefault(prompt, completion)
    return [{"prompt": prompt, "completion": completion} for prompt, completion in found.items()]
