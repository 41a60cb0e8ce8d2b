"""What runs the trainings of a study: the interface of engines, and the job that all of them carry out.

An engine decides where and when jobs run; what a job is, and what becomes of it, is the same everywhere. All that jobs
share is a folder, so several engines, also on several machines, may work on one study at a time.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from filelock import FileLock, Timeout

from lookhere.errors import InUse, LookhereError

if TYPE_CHECKING:  # a worker reads its first job, and what that needs, when its output goes to a file
    from lookhere.bench.plan_file import StudyReliance
    from lookhere.training.config import Config


@dataclass(frozen=True)
class Job:
    """One training to be done."""

    name: str
    """Of the run folder; unique in a study."""
    label: str
    """Its values, for people."""
    kind: str
    """Method, backbone and data: trainings of a kind take about as long."""
    config: Config
    identity: str
    """Of the run."""
    folder: Path
    """The run folder."""
    log: Path
    """Where progress and warnings go."""
    reliance: StudyReliance | None = None
    """How reliance is measured after the training; none where no test image has a map."""


@dataclass(frozen=True)
class Event:
    """What an engine has to say of a job: that it started, or how it ended."""

    job: Job
    state: Literal["started", "done", "failed", "elsewhere"]
    """``elsewhere``: another process is training it."""
    seconds: float = 0.0
    reason: str = ""
    """Why it failed."""
    trace: str = ""
    """The traceback, where the reason is not one that lookhere foresees."""


class Engine(Protocol):
    """Runs jobs."""

    @property
    def slots(self) -> int:
        """How many jobs run at a time."""

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Carry out each job by ``execute``; yield that it started, and later how it ended.

        Jobs are started in their order. When the generator is closed, or an exception passes through it, all jobs are
        stopped and nothing is left running.
        """


def execute(job: Job) -> Event:
    """Carry out a job in this process and return how it ended; only what must end the process is raised."""
    started = time.monotonic()
    if in_use(job.folder):
        return Event(job, "elsewhere")
    if is_done(job):
        return Event(job, "done")
    try:
        from lookhere.bench.run import train

        train(job.config, job.folder, resume=True)
        measure(job)
    except InUse:
        return Event(job, "elsewhere")
    except LookhereError as error:
        return Event(job, "failed", time.monotonic() - started, str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Event(job, "failed", time.monotonic() - started, reason, traceback.format_exc())
    return Event(job, "done", time.monotonic() - started)


def measure(job: Job) -> None:
    """Measure the reliance of a finished training, unless that was done in the same way before."""
    if job.reliance is None or is_measured(job.folder, job.reliance):
        return
    from lookhere.bench.finished import FinishedRun

    run = replace(FinishedRun.load(job.folder, job.config.training.device), config=job.config)  # where data lies now
    run.measure_reliance(options=job.reliance.options, bootstrap=job.reliance.bootstrap)


def is_done(job: Job) -> bool:
    """Is nothing of a job left to do?"""
    measured = job.reliance is None or is_measured(job.folder, job.reliance)
    return measured and is_finished(job.folder, job.identity)


def is_measured(folder: Path, reliance: StudyReliance) -> bool:
    """Does a run folder hold a reliance that was measured in this way?"""
    try:
        content = json.loads((folder / "reliance.json").read_text(encoding="utf-8"))
        made = content["options"], content["bootstrap"]["resamples"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return bool(made == (reliance.options.model_dump(mode="json"), reliance.bootstrap))


def is_finished(folder: Path, identity: str) -> bool:
    """Does a folder hold a finished run with this identity?"""
    if not (folder / "result.json").is_file():
        return False
    try:  # small, where the result is not
        return f'"identity": "{identity}"' in (folder / "environment.json").read_text(encoding="utf-8")
    except OSError:
        return False


def in_use(folder: Path) -> bool:
    """Does a process hold the lock of a run folder? The file alone, which a killed one leaves, does not count."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # cannot be written: its training will say so
        return False
    lock.release()
    return False
