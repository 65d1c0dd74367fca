"""What a run is recommended is asked of the atlas once."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from atlas_records import a_record

from bandsearch.atlas import add_record
from bandsearch.run import prior
from bandsearch.rundir import RunDirectory
from bandsearch.values.progress import Update
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import PriorSource


def test_what_the_atlas_learns_or_forgets_later_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = a_record()
    add_record(tmp_path / "atlas", record)
    monkeypatch.setattr(prior, "fingerprint", lambda source: record.fingerprint)
    spec = SimpleNamespace(prior=PriorSource.ATLAS, atlas=str(tmp_path / "atlas"), space=SearchSpace(name="default"))
    job: Any = SimpleNamespace(
        spec=spec,
        source=SimpleNamespace(slug=record.slug),
        summary=SimpleNamespace(layout=record.layout),
        dataset=SimpleNamespace(fingerprint="another"),
    )
    profile: Any = SimpleNamespace(rate_range=record.rates)
    home, heard = RunDirectory(tmp_path), list[Update]()
    asked = prior.prior_of(home, job, profile, heard.append)
    assert asked.suggestions
    assert len(heard) == len(asked.suggestions)
    shutil.rmtree(tmp_path / "atlas")
    assert prior.prior_of(home, job, profile, heard.append) == asked
    spec.prior = PriorSource.NONE
    assert not prior.prior_of(home, job, profile, heard.append).suggestions
