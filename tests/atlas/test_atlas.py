"""The atlas on disk and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from atlas_records import a_record, candidate_on
from typer.testing import CliRunner

from bandsearch.atlas import VARIABLE, add_record, atlas_directory, read_records
from bandsearch.cli.app import app
from bandsearch.cli.depth import WIDTH, heat, layers_at, strip
from bandsearch.values.band import Band
from bandsearch.values.errors import UsageError


def test_records_come_back_as_they_were_left_the_newest_first(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    old, new = a_record(date="2026-01-01T00:00:00+00:00"), a_record(data="b.jsonl", date="2026-02-01T00:00:00+00:00")
    for record in (old, new):
        add_record(folder, record)
    warned: list[str] = []
    assert read_records(folder, warned.append) == [new, old]
    assert warned == []
    assert all(path.suffix == ".json" for path in folder.iterdir())


def test_the_same_run_takes_the_place_of_its_record(tmp_path: Path) -> None:
    paths = {add_record(tmp_path, a_record(date=f"2026-01-0{day}T00:00:00+00:00")) for day in (1, 2)}
    assert len(paths) == len(list(tmp_path.iterdir())) == 1
    add_record(tmp_path, a_record(candidate_on(2, 5)))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_read_is_skipped_with_one_warning(tmp_path: Path) -> None:
    good = a_record()
    add_record(tmp_path, good)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    (tmp_path / "later.json").write_text(good.model_dump_json().replace('"format":1', '"format":2'))
    (tmp_path / "notes.txt").write_text("no record, and no concern of the atlas")
    warned: list[str] = []
    assert read_records(tmp_path, warned.append) == [good]
    assert len(warned) == 1
    assert "broken.json and 2 more" in warned[0]
    assert read_records(tmp_path / "nowhere", warned.append) == []
    assert len(warned) == 1


def test_where_the_atlas_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert atlas_directory() == tmp_path / ".cache" / "bandsearch" / "atlas"
    monkeypatch.setenv(VARIABLE, "~/elsewhere")
    assert atlas_directory() == tmp_path / "elsewhere"
    assert atlas_directory("given") == Path("given")


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["atlas", *arguments], env={"COLUMNS": "140"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_and_show(tmp_path: Path) -> None:
    add_record(tmp_path, a_record())
    add_record(tmp_path, a_record(candidate_on(0, 24, 1e-3), layers=24, slug="planted-24", data="b.jsonl"))
    listed = command("--atlas", str(tmp_path))
    assert "planted-12" in listed
    assert "layers 4-7 of 12, rank 16" in listed
    assert "33%" in listed
    assert "all 24 layers" in listed
    narrow = CliRunner().invoke(app, ["atlas", "--atlas", str(tmp_path)], env={"COLUMNS": "80"}).output
    assert any("planted-12" in line and "-0.0200 better" in line for line in narrow.splitlines())
    lines = [json.loads(line) for line in command("--atlas", str(tmp_path), "--json").splitlines()]
    assert {line["model"] for line in lines} == {"planted-12", "planted-24"}
    shown = command("show", "planted-12", "--atlas", str(tmp_path))
    assert "planted-24" not in shown
    assert strip((Band(start=4, stop=8),), 12).plain in shown
    assert "4-7: 0.4000 after 90 steps" in shown
    both = command("--atlas", str(tmp_path), "show", "Planted")
    assert "of 2 runs" in both
    assert json.loads(command("show", "planted-24", "--atlas", str(tmp_path), "--json"))["layout"]["layer_count"] == 24
    with pytest.raises(UsageError, match=r"no run on other.*It knows planted-"):
        command("show", "other", "--atlas", str(tmp_path))


def test_an_empty_atlas_says_so(tmp_path: Path) -> None:
    assert "is empty" in command("--atlas", str(tmp_path / "nothing"))


def test_a_band_is_drawn_at_its_relative_depth() -> None:
    upper = strip((Band(start=6, stop=12),), 12).plain
    assert upper == strip((Band(start=12, stop=24),), 24).plain == "·" * (WIDTH // 2) + "█" * (WIDTH // 2)
    assert layers_at(WIDTH) == list(range(WIDTH))
    assert {layers_at(1)[0], layers_at(1)[-1]} == {0}
    assert heat([0.0, 1.0]).plain == " █"
    assert heat([0.0, 0.0]).plain == "  "
