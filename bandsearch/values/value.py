"""The base of every typed value that passes between stages."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen record that refuses unknown fields and writes itself as JSON.

    Values carry no behaviour beyond reading themselves; stages are plain functions over them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
