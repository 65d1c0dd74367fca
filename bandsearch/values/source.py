"""A source: where a model is loaded from."""

from __future__ import annotations

from bandsearch.values.value import Value


class Source(Value):
    """`location` is a hub id or the absolute path of a directory; `slug` names the model in file names."""

    location: str
    revision: str | None = None
    is_local: bool
    trust_remote_code: bool = False
    slug: str

    def __str__(self) -> str:
        return f"{self.location}@{self.revision}" if self.revision else self.location
