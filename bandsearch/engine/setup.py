"""What one engine is built from, in any process."""

from __future__ import annotations

from bandsearch.values.levers import Levers
from bandsearch.values.source import Source
from bandsearch.values.value import Value


class EngineSetup(Value):
    """`data`: the file that keeps the prepared data set. `cache_directory`: where prefix states are kept; engines of
    one machine share it. None: a folder of its own."""

    source: Source
    data: str
    dtype: str
    device: str
    threads: int
    levers: Levers = Levers()
    cache_directory: str | None = None
