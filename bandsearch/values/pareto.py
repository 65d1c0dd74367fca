"""The Pareto front of loss against trainable parameters."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def pareto_front(items: Sequence[Item], objectives: Callable[[Item], tuple[float, ...]]) -> list[Item]:
    """The items no other item matches in every objective and beats in one (all minimised).

    Returned in ascending order of the first objective; of items with equal objectives the first is kept.
    Objectives must be finite numbers.
    """
    front: list[tuple[tuple[float, ...], Item]] = []
    for values, item in sorted(((objectives(item), item) for item in items), key=lambda pair: pair[0]):
        if not any(all(a <= b for a, b in zip(kept, values, strict=True)) for kept, _ in front):
            front.append((values, item))
    return [item for _, item in front]
