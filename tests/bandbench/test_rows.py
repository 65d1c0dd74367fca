"""A table on disk: short lines that come back, and what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import DESIGN, header

from bandsearch.values.errors import BandsearchError
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.rows import Row, Rows

BAND = Entry(bands=((2, 5),), rank=4, targets="all")
SET = Entry(bands=((0, 1), (3, 5)), rank=16, targets="mlp")


def _row(entry: Entry = BAND, seed: int = 0) -> Row:
    return Row(entry=entry, rate=0.01, seed=seed, kind="proxy", readings=((15, 1.25, 0.5), (45, 0.75, 1.5)))


@pytest.mark.parametrize("row", [_row(), _row(SET), Row(entry=SET, rate=1.0, seed=2, kind="full")])
def test_a_row_comes_back(row: Row) -> None:
    assert Row.parse(row.line()) == row
    assert len(row.line()) < 100


def test_a_torn_last_line_is_forgotten_and_overwritten(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "two_step.jsonl")
    rows.begin(header())
    rows.append(_row())
    rows.append(_row(SET))
    whole = rows.path.read_bytes()
    for torn in (1, 10, len(_row(SET).line())):
        rows.path.write_bytes(whole[:-torn])
        again = Rows(rows.path)
        again.begin(header())
        assert again.read() == [_row()]
        again.append(_row(seed=1))
        assert Rows(rows.path).read() == [_row(), _row(seed=1)]


def test_a_torn_first_line_is_written_anew(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "two_step.jsonl")
    rows.begin(header())
    rows.path.write_bytes(rows.path.read_bytes()[:20])
    again = Rows(rows.path)
    assert again.header is None
    again.begin(header())
    assert again.header == header()


def test_a_table_is_not_mixed_with_another_kind(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "two_step.jsonl")
    rows.begin(header())
    longer = Design(full_steps=2 * DESIGN.full_steps)
    with pytest.raises(BandsearchError, match="full_steps"):
        rows.begin(header(design=longer))
