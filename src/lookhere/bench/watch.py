"""What a person sees of a study that runs: a line for each training that ends, and on a terminal what runs now."""

from __future__ import annotations

import time
from types import TracebackType

from rich.status import Status as Spinner

from lookhere.bench.conduct import Outcome
from lookhere.bench.engine import Event
from lookhere.bench.status import Pace, read_seconds
from lookhere.progress import clock, console


class Watch:
    """Follows a study; use as a context manager, and call it after each event. Everything goes to standard error.

    Args:
        slots: trainings that run at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.pace: Pace | None = None
        self.started: dict[str, float] = {}
        self.spinner = Spinner("starting", console=console) if console.is_terminal else None

    def __enter__(self) -> Watch:
        if self.spinner:
            self.spinner.start()
        return self

    def __call__(self, event: Event, outcome: Outcome) -> None:
        """Show an event."""
        if self.pace is None:
            self.pace = Pace()
            for job in outcome.before:
                if (seconds := read_seconds(job.folder)) is not None:
                    self.pace.add(job.kind, seconds)
        if event.state == "started":
            self.started[event.job.name] = time.monotonic()
        elif event.state == "done" and event.seconds:  # not if another process has done it in the meantime
            self.pace.add(event.job.kind, event.seconds)
        left = self._left(outcome)
        if self.spinner:
            now = "; ".join(job.label for job in outcome.running)
            self.spinner.update(f"{len(outcome.running)} running, {left}: {now}".replace("[", "\\["))
        if event.state == "started":
            return
        ended = len(outcome.before) + len(outcome.done) + len(outcome.failed) + len(outcome.elsewhere)
        everything = ended + len(outcome.running) + len(outcome.left)
        done = f"done in {clock(event.seconds)}" if event.seconds else "done elsewhere"
        how = {"done": done, "failed": "FAILED", "elsewhere": "running elsewhere"}
        line = f"[{ended}/{everything}] {event.job.label}: {how[event.state]}; {left}"
        if event.state == "failed":
            line += f"\n  {event.reason.splitlines()[0]}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self, outcome: Outcome) -> str:
        assert self.pace is not None
        seconds = self.pace.left(job.kind for job in outcome.left)
        count = f"{len(outcome.left)} waiting"
        if seconds is None:
            return count
        for job in outcome.running:
            whole = self.pace.left([job.kind]) or 0.0
            seconds += max(0.0, whole - (time.monotonic() - self.started[job.name]))
        return f"{count}, about {clock(seconds / self.slots)} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.spinner:
            self.spinner.stop()
