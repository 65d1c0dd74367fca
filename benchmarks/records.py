"""Records in memory: what a benchmark trains is not continued by another process."""

from __future__ import annotations

from bandsearch.values.trial import TrialResult


class MemoryRecords:
    def __init__(self) -> None:
        self._results: list[TrialResult] = []

    def append(self, result: TrialResult) -> None:
        self._results.append(result)

    def results(self) -> list[TrialResult]:
        return list(self._results)
