"""The data: cyclic patterns to be continued, with the lengths that instruction data has."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from benchmarks.scale import Lengths

# Few words, so that even a random model soon learns which of its vocabulary occur at all.
WORDS = 48
SUPERVISED_SHARE = 0.25


def word(index: int) -> str:
    return f"{index}"


def write_rows(path: Path, count: int, lengths: Lengths) -> None:
    """Rows of prompt and completion, all different; the completion, a quarter of the words, goes on with the cycle."""
    numbers = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            total = _length(lengths, numbers)
            period = numbers.randint(3, 6)
            cycle = [word(numbers.randrange(WORDS)) for _ in range(period)]
            words = [cycle[position % period] for position in range(total)]
            # A few other words at the front make short rows differ.
            words[:3] = [word(numbers.randrange(WORDS)) for _ in range(3)]
            answered = max(1, round(SUPERVISED_SHARE * total))
            row = {"prompt": " ".join(words[:-answered]), "completion": " " + " ".join(words[-answered:])}
            file.write(json.dumps(row) + "\n")


def _length(lengths: Lengths, numbers: random.Random) -> int:
    drawn = lengths.median * math.exp(numbers.gauss(0.0, lengths.sigma))
    return min(max(round(drawn), lengths.shortest), lengths.longest)
