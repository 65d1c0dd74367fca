"""Search spaces from YAML files: found by name or path, read strictly, all mistakes reported together."""

from __future__ import annotations

from pathlib import Path

from bandsearch.spaces.folder import shipped
from bandsearch.spaces.page import read_page, suggest
from bandsearch.spaces.reading import parse_space
from bandsearch.values.errors import SpaceError
from bandsearch.values.space import SearchSpace

__all__ = ["load_space", "parse_space", "space_names"]

_SUFFIXES = (".yaml", ".yml")


def space_names() -> tuple[str, ...]:
    """The spaces that come with bandsearch: `default` first, then by name."""
    names = sorted(path.stem for path in shipped().glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: name != "default"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """The space of that name, or of that YAML file. Raises SpaceError with every mistake of the file."""
    path = _find(name_or_path)
    return parse_space(read_page(path), path.stem, str(path))


def _find(name_or_path: str | Path) -> Path:
    name, names = str(name_or_path), space_names()
    if name in names:
        return shipped() / f"{name}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    choices = f"Choose {', '.join(names)}, or give the path of a YAML file."
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise SpaceError(f"There is no search-space file {name}.", choices)
    raise SpaceError(f"There is no search space {name!r}{suggest(name, names)}.", choices)
