"""What one engine is built from, in any process."""

from __future__ import annotations

from bandsearch.values.source import Source
from bandsearch.values.spec import DataSpec
from bandsearch.values.value import Value


class EngineSetup(Value):
    source: Source
    data: DataSpec
    seed: int
    dtype: str
    device: str
    threads: int
