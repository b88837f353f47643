"""What can go wrong, in one place: the error a person can fix, the outcomes a job can end in, exit codes."""

import difflib
from collections.abc import Iterable

# every job, trial, run and request ends in exactly one of these words
OUTCOMES = (
    "done",
    "stopped",
    "out_of_memory",
    "not_finite",
    "bad_input",
    "disk_full",
    "error",
    "killed",
)

EXIT_DONE = 0
EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130


class UserError(Exception):
    """A mistake that the person at the keyboard can fix; shown without a traceback, exit 2.

    message says what is wrong and contains the value, value repeats it for machines (JSON),
    fix says what to do about it.
    """

    def __init__(self, message: str, *, value: object = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message

    def as_json(self) -> dict[str, object]:
        """{"message", "value", "fix"}: the `error` object of every JSON result."""
        return {"message": self.message, "value": self.value, "fix": self.fix}


class DiskFull(UserError):
    """The disk or quota behind a path is exhausted; what was saved before is intact."""


class RankLost(Exception):
    """Another process of a team ended, failed or no longer answers; what it left about itself is the cause."""


class Damaged(UserError):
    """A file on disk is not what its manifest or format says."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a mistyped one, or None where nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown setting, key or verb: names it and offers the closest known one."""
    options = sorted(known)
    guess = nearest(name, options)
    fix = f"did you mean {guess!r}?" if guess else f"known: {', '.join(options)}"
    return UserError(f"unknown {kind} {name!r}", value=name, fix=fix)
