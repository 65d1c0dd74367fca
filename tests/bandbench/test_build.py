"""A table really built, as small as one can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bandbench import build as building
from benchmarks.bandbench import probing
from benchmarks.bandbench.build import build
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.probes import LADDER, keep_probes, load_probes
from benchmarks.bandbench.probing import take_probes
from benchmarks.bandbench.rows import Rows
from benchmarks.bandbench.table import load_table
from benchmarks.bandbench.world import World

TINY = Design(
    ranks=(2,),
    targets=("mlp",),
    rate_factors=(0.5, 1.0),
    rungs=(1, 2),
    full_steps=3,
    seeds=2,
    batch_size=4,
    validation_examples=8,
    set_widths=(),
)


def _two(entry: Entry) -> bool:
    return entry.bands in (((0, 4),), ((2, 4),))


@pytest.mark.slow
def test_a_table_is_built_once_and_goes_on_where_it_was_broken_off(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (building, probing):
        monkeypatch.setattr(module, "MODEL", str(tiny_model("qwen2")))
    assert not build(tmp_path, ["toss"], TINY, minutes=0)
    assert build(tmp_path, ["toss"], TINY, wanted=_two)
    path = tmp_path / "toss.jsonl"
    rows = Rows(path).read()
    # On two bands: two rates, both of them in full, and on the second seed the better one, of full depth both.
    assert sorted((row.kind, row.seed) for row in rows) == [
        *[("full", 0)] * 4,
        *[("full", 1)] * 3,
        *[("proxy", 0)] * 4,
        *[("proxy", 1)] * 3,
    ]
    assert all(row.readings[0][1] > 0 for row in rows)
    table = load_table(tmp_path, "toss")
    assert table is not None
    assert table.header.control
    assert len(table.options) == 4
    assert World(table, 0).loss(table.options[table.full_depth].candidate, -1, 0) > 0

    take_probes(tmp_path, "toss")
    probed = load_table(tmp_path, "toss")
    assert probed is not None
    assert set(probed.probes) == set(LADDER)
    assert all(each.rate_range.best > 0 and each.seconds > 0 for each in probed.probes.values())
    assert probed.profile_within(probed.exhaustive_seconds) == probed.probes[LADDER[-1]]
    assert probed.profile_within(0.9 * LADDER[-1] * probed.exhaustive_seconds) == probed.probes[LADDER[-2]]
    assert probed.profile_within(0) == probed.probes[LADDER[0]]
    keep_probes(tmp_path, "toss", {share: probed.probes[share] for share in LADDER[:-1]})
    take_probes(tmp_path, "toss")
    again = load_probes(tmp_path, "toss")
    assert set(again) == set(LADDER)
    assert all(again[share] == probed.probes[share] for share in LADDER[:-1])

    whole = path.read_bytes()
    assert build(tmp_path, ["toss"], TINY, wanted=_two)
    assert path.read_bytes() == whole

    path.write_bytes(whole[:-9])
    assert build(tmp_path, ["toss"], TINY, wanted=_two)
    again = Rows(path).read()
    assert {row.key for row in again} == {row.key for row in rows}
    first = {row.key: row.readings[-1][1] for row in rows}
    assert all(row.readings[-1][1] == pytest.approx(first[row.key], rel=1e-3) for row in again)
