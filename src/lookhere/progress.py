"""Progress with the time left: a live bar on a terminal, plain lines elsewhere. Everything goes to standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lookhere.launch import is_first

console = Console(stderr=True)


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Track:
    """Follows ``total`` steps of one task; use as a context manager and call ``advance``.

    Where several processes share the task, the first alone shows it.

    Args:
        title: what is being done, in a few words.
        total: number of steps.
        every: seconds between two plain lines when standard error is not a terminal.
    """

    def __init__(self, title: str, total: int, every: float = 15.0) -> None:
        self.title, self.total, self.every = title, total, every
        self.done = 0
        self.note = ""
        self.started = self.last = time.monotonic()
        self.live: Progress | None = None
        self.silent = not is_first()

    def __enter__(self) -> Track:
        self.started = self.last = time.monotonic()
        if console.is_terminal and not self.silent:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self.live.start()
            self.live.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count ``steps`` more as done; ``note`` is shown beside them."""
        self.done += steps
        self.note = self.note if note is None else note
        if self.live:
            self.live.update(self.live.task_ids[0], completed=self.done, note=self.note)
            return
        now = time.monotonic()
        if now - self.last >= self.every and self.done < self.total and not self.silent:
            self.last = now
            left = (now - self.started) / max(self.done, 1) * (self.total - self.done)
            line = f"{self.title}: {self.done}/{self.total}, {clock(left)} left"
            print(f"{line}  {self.note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
