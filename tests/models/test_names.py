"""What may stand behind --model, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from bandsearch.models.aliases import ALIASES, resolve
from bandsearch.values.errors import ModelError
from bandsearch.values.spec import ModelSpec


def named(name: str, **changes: object):
    return resolve(ModelSpec(name=name, **changes))


def test_an_alias_a_hub_id_and_a_revision():
    assert named("qwen2.5-7b").location == "Qwen/Qwen2.5-7B"
    assert named("Qwen2.5-7B").slug == "qwen2.5-7b"
    source = named("org/Some_Model@v1")
    assert (source.location, source.revision, source.is_local, source.slug) == (
        "org/Some_Model",
        "v1",
        False,
        "some-model",
    )
    assert named("org/name", revision="abc").revision == "abc"
    assert named("olmo2-7b@main").location == ALIASES["olmo2-7b"]
    assert not named("org/name").trust_remote_code
    assert named("org/name", trust_remote_code=True).trust_remote_code


@pytest.mark.parametrize(
    "name",
    [f"qwen2.5-{size}b{kind}" for size in ("0.5", "1.5", "3", "7", "14", "32", "72") for kind in ("", "-instruct")]
    + ["gemma2-2b-it", "gemma2-9b-it", "gemma3-1b-it", "gemma3-4b-it", "mistral-7b-instruct", "qwen2.5-coder-7b"]
    + ["llama3-8b", "llama3-8b-instruct", "llama3.1-70b", "llama3.1-70b-instruct", "qwen3-4b-instruct-2507"]
    + [f"olmo2-{size}b" for size in (1, 7, 13, 32)]
    + ["qwen3-0.6b", "qwen3-32b", "llama3.1-8b", "llama3.2-1b", "mistral-7b", "gemma2-2b", "gemma3-1b", "phi4-14b"],
)
def test_promised_aliases(name: str):
    assert named(name).location.count("/") == 1


def test_no_two_aliases_are_the_same_model():
    assert len(set(ALIASES.values())) == len(ALIASES)
    assert all(alias == alias.lower() for alias in ALIASES)


def test_a_directory(tiny_model, tmp_path: Path, monkeypatch):
    directory = tiny_model("llama")
    source = named(str(directory))
    assert source.is_local
    assert source.location == str(directory.resolve())
    monkeypatch.chdir(directory.parent)
    assert named(directory.name).location == source.location
    assert named(f"./{directory.name}").location == source.location


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen25-7b", "Did you mean qwen2.5-7b"),
        ("demoo", "Did you mean demo"),
        ("no-such-thing-at-all", "no model called"),
        ("/no/such/place", "/no/such/place does not exist"),
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("", "empty"),
        ("org/name@", None),
    ],
)
def test_unknown_names(name: str, words: str | None):
    if words is None:
        assert named(name).revision is None
        return
    with pytest.raises(ModelError, match=words):
        named(name)


def test_things_on_disk_that_are_no_models(tiny_model, tmp_path: Path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        named(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match="holds an adapter"):
        named(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        named(str(tmp_path / "adapter_config.json"))
    with pytest.raises(ModelError, match="revision"):
        named(str(tiny_model("llama")), revision="main")
    with pytest.raises(ModelError, match="Two revisions"):
        named("qwen3-8b@a", revision="b")
