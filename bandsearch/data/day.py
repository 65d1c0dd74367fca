"""The day that chat templates take for today: a fixed one, so that the same data trains on the same tokens tomorrow."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

# Llama 3.2's own template takes it for today where nobody tells it the date.
DAY = datetime(2024, 7, 26)
DAY_FIXED = (
    f"The chat template writes today's date: for these examples {DAY:%d %B %Y}, so that they stay the same; "
    "a server writes the date of the day."
)
# What transformers (and vLLM with it) offers templates to read the clock.
_CLOCK = "strftime_now"
_DIRECTIVES = "aAbBcdHIjmMpSUwWxXyY"


def writes_the_day(template: str) -> bool:
    return _CLOCK in template


@lru_cache(maxsize=8)
def on_the_day(template: str) -> str:
    """The jinja template with a clock of its own that stands still: transformers lets no function be handed to one."""
    if not writes_the_day(template):
        return template
    parts = (f"%{flag}{letter}" for letter in _DIRECTIVES for flag in ("-", ""))
    read = "".join(f".replace({part!r}, {DAY.strftime(part)!r})" for part in parts)
    # The line break belongs to the macro's block; the template begins a line, as it does by itself.
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{read} }}}}{{% endmacro %}}\n{template}"
