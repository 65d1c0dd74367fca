"""Stages on their own leave nothing behind but what they were asked for."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.engine.failures import LostEngineError
from bandsearch.run import single
from bandsearch.values.errors import InterruptedRunError
from bandsearch.values.progress import Stop


def test_plan_takes_its_prefix_cache_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is ended without a chance to do so."""
    seen: list[Path] = []

    def start(job: Any, listen: Any, data: Path, cache: Path, stop: Stop) -> SimpleNamespace:
        data.touch()
        (cache / "key").mkdir(parents=True)
        seen.append(cache)
        return SimpleNamespace(stop=lambda: None, abandoned_once=nullcontext)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(single, "prepare_job", lambda spec: SimpleNamespace(dataset=None))
    monkeypatch.setattr(single, "keep", lambda dataset, path: None)
    monkeypatch.setattr(single, "start_engines", start)
    monkeypatch.setattr(single, "measured_plan", lambda *_, **__: "planned")
    assert single.plan_only(SimpleNamespace()) == "planned"  # type: ignore[comparison-overlap, arg-type]
    assert seen[0].is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise LostEngineError("An engine died.", "Look.")

    monkeypatch.setattr(single, "prepare_job", lambda spec: SimpleNamespace(dataset=None))
    monkeypatch.setattr(single, "keep", lambda dataset, path: None)
    monkeypatch.setattr(single, "start_engines", start)
    with pytest.raises(InterruptedRunError, match="Stopped"):
        single.plan_only(SimpleNamespace(), stop=lambda: True)  # type: ignore[arg-type]
    with pytest.raises(LostEngineError):
        single.plan_only(SimpleNamespace())  # type: ignore[arg-type]
