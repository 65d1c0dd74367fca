"""The environment of a run remembers what its earlier sessions were run on."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bandsearch.values.environment import Environment
from bandsearch.values.source import Source

SOURCE = Source(location="org/base", is_local=False, slug="base")


def on(accelerator: str, started: str = "") -> Environment:
    return Environment(facts={"accelerators": accelerator, "started": started}, source=SOURCE)


@given(st.lists(st.sampled_from(("none", "H100", "A100")), min_size=1))
def test_whatever_a_session_was_run_on_is_told_once(accelerators: list[str]) -> None:
    known = None
    for number, accelerator in enumerate(accelerators):
        known = on(accelerator, str(number)).going_on(known, Path("run"))
        assert Environment.model_validate_json(known.model_dump_json()) == known
    assert known is not None
    assert known.facts == {"accelerators": accelerators[-1], "started": "0"}
    others = [each for each in dict.fromkeys(accelerators) if each != accelerators[-1]]
    assert set(known.earlier.get("accelerators", ())) == set(others)
    assert set(known.earlier) <= {"accelerators"}
    assert all(known.told["accelerators"].count(each) == 1 for each in {*accelerators})
    if not others:
        assert known.told == known.facts


def test_a_fact_that_is_gone_is_kept_too() -> None:
    before = Environment(facts={"liger": "1.0"}, source=SOURCE)
    assert on("none").going_on(before, Path("run")).earlier == {"liger": ("1.0",)}
