"""A file of options: what several runs have in common, under the options' own names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import yaml

    from bandsearch.spaces.page import Page


# YAML's name for what `null` and `~` say: no value, which leaving the option out says too.
NULL = "tag:yaml.org,2002:null"


def take_config(context: typer.Context, path: Path | None, names: Iterable[str]) -> None:
    """Let the file say what the command line leaves open of the parameters `names`; those that a command does not have
    are left alone, so that several commands can share a file. Raises UsageError with every mistake of it."""
    if path is None:
        return
    from bandsearch.spaces.page import Page, compose, fields_of, read_page
    from bandsearch.values.errors import SpaceError, UsageError

    keys = {name.rstrip("_").replace("_", "-"): name for name in names}
    page = Page()
    try:
        given = fields_of(page, compose(read_page(path), str(path)), "", dict.fromkeys(keys, _written))
        page.refuse_mistakes(str(path))
    except SpaceError as error:
        raise UsageError(error.message, "Write options as `max-length: 512`; --help explains each.") from error
    several = {option.name for option in context.command.params if getattr(option, "multiple", False)}
    context.default_map = {
        keys[key]: values if keys[key] in several else ",".join(values) for key, values in given.items()
    }


def _written(page: Page, node: yaml.Node, place: str) -> list[str] | None:
    """One value, a list, or `name: value` lines, each as it would be typed."""
    import yaml

    from bandsearch.spaces.page import found, word_of

    def words(node: yaml.Node) -> Any:
        word = None if node.tag == NULL else word_of(node)
        if not word:
            page.note(node, place, f"expected a value, found {found(node)}")
        return word or ""

    if isinstance(node, yaml.SequenceNode):
        if not node.value:
            page.note(node, place, "expected a value, found a list of 0")
        return [words(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return [f"{words(key)}={words(value)}" for key, value in node.value]
    return [words(node)]
