"""Errors a person can act on: one sentence saying what is wrong, one saying what to do."""

# As sysexits.h has it for what may be tried again: nothing is wrong with what was asked for, and a run can be resumed.
TRY_AGAIN = 75
# What was asked for is wrong, or cannot be done here.
REFUSED = 2


class BandsearchError(Exception):
    """A failure with a remedy. The command line prints `str(error)` and exits with `exit_code`, no traceback."""

    exit_code = REFUSED

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        separator = "\n" if "\n" in self.message else " "
        return f"{self.message}{separator}{self.remedy}".strip()


class UsageError(BandsearchError):
    """A wrong option, name or combination of options."""


class SpaceError(BandsearchError):
    """A search-space file with mistakes; all of them are listed in the message."""


class ModelError(BandsearchError):
    """A model that cannot be found, loaded or adapted."""


class DataError(BandsearchError):
    """A data set that cannot be read or holds nothing to learn from."""


class AdapterError(BandsearchError):
    """An adapter that would not load, or would load and be silently wrong."""


class BudgetError(BandsearchError):
    """A budget in the wrong unit for this machine, or too small for even the final training."""


class RunDirectoryError(BandsearchError):
    """A run directory that belongs to another run, is damaged, or cannot be written."""


class FullDiskError(RunDirectoryError):
    """A disk without room for what is to be written there."""


class FullRunDiskError(FullDiskError):
    """A disk without room for what a run writes; it goes on once there is some."""

    exit_code = TRY_AGAIN


class DependencyError(BandsearchError):
    """An optional package that is needed for what was asked and is not installed."""


class InterruptedRunError(BandsearchError):
    """The person pressed Ctrl-C; where anything was finished it is on disk, and the remedy says how to go on."""

    exit_code = 130
