"""The environment of a run: what a reader needs to judge or repeat its figures, and to show it on another machine."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.lineage import Lineage
from bandsearch.values.source import Source
from bandsearch.values.value import Value


class Environment(Value):
    """The content of `environment.json`. By the fingerprints a resumed run knows its model and data again."""

    facts: dict[str, str]
    source: Source
    model: str = Field(default="", description="fingerprint of the base's weights")
    data: str = Field(default="", description="fingerprint of the rows")
    data_notes: tuple[str, ...] = Field(default=(), description="what was recognised, cut and dropped of them")
    lineage: Lineage | None = Field(default=None, description="None in runs of earlier versions")
    earlier: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="facts of earlier sessions by name, where they were others, in their order"
    )

    @property
    def told(self) -> dict[str, str]:
        """The facts, each with what it was before."""
        return {
            name: f"{fact} (earlier: {'; '.join(self.earlier[name])})" if name in self.earlier else fact
            for name, fact in self.facts.items()
        }

    def going_on(self, known: Environment | None, home: Path) -> Environment:
        """This one, begun when `known` was. Raises RunDirectoryError where model or data have changed since."""
        if known is None:
            return self
        for name, before, now in (("model", known.model, self.model), ("data set", known.data, self.data)):
            if before and before != now:
                raise RunDirectoryError(
                    f"The {name} is not the one that the run in {home} began with (fingerprint {now}, then {before}).",
                    "Put that back, or start a run in a new directory.",
                )
        started = {name: value for name, value in known.facts.items() if name == "started"}
        facts = self.facts | started
        seen = {name: (*known.earlier.get(name, ()), fact) for name, fact in known.facts.items()}
        others = {
            name: tuple(dict.fromkeys(fact for fact in before if fact != facts.get(name)))
            for name, before in seen.items()
        }
        earlier = {name: before for name, before in others.items() if before}
        return self.model_copy(update={"facts": facts, "earlier": earlier})
