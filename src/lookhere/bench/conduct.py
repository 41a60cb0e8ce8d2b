"""Doing a study: every training that is not done goes to an engine, and what becomes of it is kept on disk."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lookhere.bench.engine import Engine, Event, Job, in_use, is_done
from lookhere.bench.study import Study
from lookhere.errors import UsageError
from lookhere.training.folder import write_json
from lookhere.weights import BackboneOptions, resolve_weights


@dataclass
class Outcome:
    """What has become of trainings so far."""

    before: list[Job] = field(default_factory=list)
    """Finished before."""
    left: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    done: list[Event] = field(default_factory=list)
    failed: list[Event] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)
    """In the hands of another process."""


def run_study(
    study: Study,
    engine: Engine,
    *,
    shard: tuple[int, int] = (1, 1),
    report: Callable[[Event, Outcome], None] = lambda event, outcome: None,
) -> Outcome:
    """Do all trainings that are not done, or those of one shard, and return what became of them.

    A training that fails, whatever the reason, leaves the others alone; the next call tries it again.

    Args:
        study: what ``prepare`` returns.
        engine: where trainings run.
        shard: which of them, see ``Study.shard``.
        report: called after each event.
    """
    outcome = Outcome()
    for job in study.shard(*shard):
        (outcome.before if is_done(job) else outcome.left).append(job)

    def take(event: Event) -> None:
        _record(event, study.folder)
        _count(event, outcome)
        report(event, outcome)

    for event in _without_weights(outcome.left.copy()):
        take(event)
    while outcome.left:
        with closing(engine.run(outcome.left.copy())) as events:
            for event in events:
                take(event)
        # Whoever had the others may have finished or died since, or have looked into a folder at the same moment.
        busy = [job for job in outcome.elsewhere if in_use(job.folder)]
        outcome.left = [job for job in outcome.elsewhere if job not in busy]
        outcome.elsewhere = busy
    return outcome


def _without_weights(jobs: Sequence[Job]) -> Iterator[Event]:
    """Fetch the weights that trainings start from, once for all; yield the failure of those that cannot have them."""

    @cache
    def problem(name: str, weights: str) -> str:
        try:
            resolve_weights(BackboneOptions(name=name, weights=weights))
        except UsageError as error:
            return str(error)
        return ""

    for job in jobs:
        if reason := problem(job.config.backbone.name, job.config.backbone.weights):
            yield Event(job, "started")
            yield Event(job, "failed", reason=reason)


def _record(event: Event, folder: Path) -> None:
    """Keep the reason of a failure on disk until the training succeeds."""
    path = folder / "failed" / f"{event.job.name}.json"
    if event.state == "done":
        path.unlink(missing_ok=True)
    elif event.state == "failed":
        path.parent.mkdir(exist_ok=True)
        content = {"name": event.job.name, "label": event.job.label, "reason": event.reason, "traceback": event.trace}
        where = {"log": str(event.job.log), "host": socket.gethostname(), "time": time.strftime("%F %T")}
        write_json(path, {**content, **where})


def _count(event: Event, outcome: Outcome) -> None:
    if event.state == "started":
        outcome.left.remove(event.job)
        outcome.running.append(event.job)
        return
    outcome.running.remove(event.job)
    if event.state == "elsewhere":
        outcome.elsewhere.append(event.job)
    else:
        (outcome.done if event.state == "done" else outcome.failed).append(event)
