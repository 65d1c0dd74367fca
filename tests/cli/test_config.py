"""A file of options: as if they were typed, overruled by what is typed, and every mistake of it named."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bandsearch import api
from bandsearch.cli.options import NO_SEARCH, takes_specification
from bandsearch.values.errors import UsageError
from bandsearch.values.spec import RunSpec

FILE = """
model: demo
dataset: [demo:words, demo:swap]
budget: 2min
epochs: 1e-1
seed: 7
columns:
  article: prompt
  highlights: completion
trust-remote-code: true
task-chat: false
without: [packing, liger]
tasks: demo_words
"""


def told(file: str | Path, *options: str, **fixed: object) -> RunSpec:
    seen: list[RunSpec] = []
    app = typer.Typer()
    app.command()(takes_specification(**fixed)(lambda spec: seen.append(spec)))
    done = CliRunner().invoke(app, ["--config", str(file), *options])
    if done.exception:
        raise done.exception
    return seen[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "common.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_file_says_what_options_say(file: Path) -> None:
    assert told(file) == api.specify(
        "demo",
        ["demo:words", "demo:swap"],
        budget="2min",
        epochs=0.1,
        seed=7,
        columns={"article": "prompt", "highlights": "completion"},
        trust_remote_code=True,
        task_chat=False,
        without=("packing", "liger"),
        tasks=("demo_words",),
    )


def test_the_command_line_overrules_it(file: Path) -> None:
    spec = told(file, "-d", "demo:toss", "--seed", "1", "--task-chat")
    assert (spec.data.names, spec.seed, spec.task_chat) == (("demo:toss",), 1, True)
    assert spec.train.epochs == 0.1


def test_commands_with_fewer_options_share_it(file: Path) -> None:
    spec = told(file, **NO_SEARCH)
    assert (spec.seed, spec.budget, spec.train.epochs) == (7, None, 3.0)


def test_all_mistakes_are_named_with_their_lines(file: Path) -> None:
    file.write_text("model: demo\nmax_length: 64\nlora_r: 8\nbudget:\nseed: 1\nseed: 2\n")
    with pytest.raises(UsageError) as caught:
        told(file)
    words = str(caught.value)
    assert "4 mistakes" in words
    assert "line 2, column 1: unknown key 'max_length' (did you mean max-length?)" in words
    assert "line 3, column 1: unknown key 'lora_r'" in words
    assert "line 4, column 8: budget: expected a value, found nothing" in words
    assert "line 6, column 1: seed: given twice (first on line 5)" in words
    assert "search space" not in words


def test_no_value_is_none(file: Path) -> None:
    """Left out it says the same; a branch of the name of null is meant by nobody."""
    file.write_text("steps: null\nrevision: ~\nwithout: []\n")
    with pytest.raises(UsageError, match=r"3 mistakes(.|\n)*line 1, .*expected a value(.|\n)*a list of 0"):
        told(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "none.yaml cannot be read: No such file"), ("", "is empty"), ("a: [", "is not YAML"), ("demo", "lines")],
)
def test_what_is_no_such_file(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "none.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        told(path)
