"""The folder of the spaces that come with bandsearch."""

from __future__ import annotations

from pathlib import Path


def shipped() -> Path:
    """In the installed package, beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    return next(path for path in (here / "search_spaces", here.parent / "search_spaces") if path.is_dir())


ADVICE = f"Every key and value is explained at the top of the space `default`, {shipped() / 'default.yaml'}."
