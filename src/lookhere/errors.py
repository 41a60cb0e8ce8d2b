"""What can go wrong, each with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LookhereError(Exception):
    """Base of every error that a user can act on; its text is shown without a traceback."""

    exit_code = 1


class UsageError(LookhereError):
    """An option, configuration or command that cannot be carried out."""

    exit_code = 2


class InUse(UsageError):
    """A run folder that another process is training in."""


class DataError(LookhereError):
    """Problems of a manifest or of the files it names, all of them at once.

    Args:
        problems: one sentence each, naming file, row, column, value and what was expected.
    """

    exit_code = 3
    shown = 20

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems[: self.shown]
        if len(self.problems) > self.shown:
            lines.append(f"… and {len(self.problems) - self.shown} more ({len(self.problems)} problems in all)")
        super().__init__("\n".join(lines))


class TrainingError(LookhereError):
    """A training that had to stop: a loss that is not finite, no memory left."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
