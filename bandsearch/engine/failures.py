"""How a training fails. Light to import: the processes that only ask an engine need nothing else of it."""

from bandsearch.values.errors import TRY_AGAIN, BandsearchError

# What to do where an accelerator's memory does not do.
LESS_MEMORY = "Lower --max-length, keep the base in 4 bits (--dtype nf4), or use a smaller model."

# What PyTorch and the libraries under it say where memory does not do, most of them in a plain RuntimeError.
NO_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")


class DivergedError(BandsearchError):
    """The loss or a gradient became NaN or infinite."""


class OutOfMemoryError(BandsearchError):
    """Not even one example at a time fits."""


class LostEngineError(BandsearchError):
    """An engine that died or cannot go on. No candidate is to blame, and what is finished is on disk."""

    exit_code = TRY_AGAIN


class UnplannedError(LostEngineError):
    """An engine was lost before there was a run: there is nothing to go on with."""

    exit_code = BandsearchError.exit_code


class OverrunError(LostEngineError):
    """The budget is over and an engine did not come back. Nobody is to try again before somebody has looked."""

    exit_code = BandsearchError.exit_code
