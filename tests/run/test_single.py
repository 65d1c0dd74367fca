"""Stages on their own leave nothing behind but what they were asked for."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.run import single


def test_plan_takes_its_prefix_cache_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is ended without a chance to do so."""
    seen: list[Path] = []

    def start(job: Any, listen: Any, data: Path, cache: Path) -> SimpleNamespace:
        data.touch()
        (cache / "key").mkdir(parents=True)
        seen.append(cache)
        return SimpleNamespace(stop=lambda: None)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(single, "prepare_job", lambda spec: SimpleNamespace(dataset=None))
    monkeypatch.setattr(single, "keep", lambda dataset, path: None)
    monkeypatch.setattr(single, "start_engines", start)
    monkeypatch.setattr(single, "measured_plan", lambda *_, **__: "planned")
    assert single.plan_only(SimpleNamespace()) == "planned"  # type: ignore[comparison-overlap, arg-type]
    assert seen[0].is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
