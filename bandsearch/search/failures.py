"""Failures of engines that are nobody's candidate's fault, in words."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError

from bandsearch.values.errors import BandsearchError


def in_words(error: RayTaskError | RayActorError) -> BandsearchError:
    """The sentence somebody wrote, or where there is none that an engine was lost."""
    inner: BaseException = error
    while isinstance(inner, RayTaskError) and inner.cause is not None:
        inner = inner.cause
    if isinstance(inner, BandsearchError):
        return inner
    return BandsearchError(
        f"An engine was lost ({type(inner).__name__}: {_last_line(inner)}).",
        "Everything finished is saved; go on with `bandsearch resume`.",
    )


def _last_line(error: BaseException) -> str:
    """Where Ray's long messages say what happened."""
    return next(reversed(str(error).strip().splitlines()), "no message")
