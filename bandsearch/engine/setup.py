"""What one engine is built from, in any process."""

from __future__ import annotations

from bandsearch.values.levers import Levers
from bandsearch.values.source import Source
from bandsearch.values.spec import DataSpec
from bandsearch.values.value import Value


class EngineSetup(Value):
    """`cache_directory`: where prefix states are kept; engines of one machine share it. None: a folder of its own."""

    source: Source
    data: DataSpec
    seed: int
    dtype: str
    device: str
    threads: int
    levers: Levers = Levers()
    cache_directory: str | None = None
