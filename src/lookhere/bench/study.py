"""A study: a plan's trainings in one folder, each done once, whoever does it.

    DIR/plan.toml         the plan as it was written
    DIR/plan.json         the plan resolved: each training with its folder and its values
    DIR/runs/NAME/        a run folder for each training; NAME ends with the start of the run's identity
    DIR/logs/NAME.log     what the training printed
    DIR/failed/NAME.json  why a training failed; gone once it succeeds

A training is done when its run folder holds ``result.json`` and, where test images have maps, ``reliance.json``. There
is no other record of it: a study that was killed goes on where it was, and the folders of two machines become one by
copying them together.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lookhere import launch
from lookhere.bench.engine import Job
from lookhere.bench.plan import AVERAGED, Entry, Plan
from lookhere.bench.run import read_rows
from lookhere.data.cache import Dataset, load_dataset
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.alterations import RelianceOptions
from lookhere.evaluation.pairs import pair_images
from lookhere.training.devices import resolve_device
from lookhere.training.folder import write_json

FORMAT = 1
OWN = {"plan.toml", "plan.json", "runs", "logs", "failed", ".lock"}
"""What a study's folder holds."""


@dataclass(frozen=True)
class Study:
    """A plan whose data is there, and whose trainings have a folder each."""

    folder: Path
    jobs: tuple[Job, ...]
    """Each training once, in the plan's order."""
    notes: tuple[str, ...]
    """What one might not see in the plan, a sentence each."""

    def shard(self, index: int, count: int) -> tuple[Job, ...]:
        """Return every ``count``-th training, from the ``index``-th on, which is at least 1."""
        return self.jobs[index - 1 :: count]


def prepare(plan: Plan, folder: Path) -> Study:
    """Check and decode the data of a plan, name its trainings, and write both forms of the plan to the folder.

    Raises:
        UsageError: a manifest or a device that is not there; a folder that cannot be written.
        DataError: all that is wrong with the data.
    """
    if launch.started() > 1:
        raise UsageError("a study trains several at a time by itself; start it as one process, without torchrun")
    if plan.missing:
        raise UsageError("\n".join(plan.missing.values()))
    others = {path.name for path in folder.iterdir()} - OWN if folder.is_dir() else set()
    if others and not (folder / "plan.json").is_file():
        raise UsageError(f"{folder}: holds other files ({min(others)}, …); take another --out")
    for device in dict.fromkeys(entry.config.training.device for entry in plan.entries):
        resolve_device(device)
    folder = folder.absolute()
    jobs = _jobs(plan, folder)
    unique: dict[str, Job] = {}
    for job in jobs:
        unique.setdefault(job.name, job)
    more = len(jobs) - len(unique)
    notes = [f"{more} of {len(jobs)} trainings repeat others, and are not made again"] if more else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # several shards may start at once
            shutil.copyfile(plan.path, folder / "plan.toml")
            write_json(folder / "plan.json", _resolved(plan, jobs))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    return Study(folder, tuple(unique.values()), (*plan.notes, *notes))


def _jobs(plan: Plan, folder: Path) -> list[Job]:
    """Return the job of each entry; entries with the same identity have the same name."""
    runs = folder / "runs"
    there = {path.name[-8:]: path.name for path in runs.iterdir()} if runs.is_dir() else {}
    names: dict[str, str] = {}
    jobs = []
    for entry, (sha256, has_reliance) in zip(plan.entries, _read_data(plan), strict=True):
        config = entry.config
        try:
            digest = identity = config.identity(sha256)
        except OSError:  # no such weights: it fails, under a name that no other training has
            digest, identity = hashlib.sha256(config.model_dump_json().encode()).hexdigest(), ""
        if digest not in names:
            found = there.get(digest[:8], "")  # made by another plan, which may call its data sets by other names
            mine = found.startswith(f"{config.method.name}-") and f"-seed{config.seed}-" in found
            names[digest] = found if mine else f"{_readable(entry)}-{digest[:8]}"
        name = names[digest]
        log = folder / "logs" / f"{name}.log"
        reliance = plan.reliance if has_reliance else None
        jobs.append(Job(name, entry.label, entry.kind, config, identity, runs / name, log, reliance))
    if len(set(names.values())) < len(names):
        raise UsageError(f"{plan.path}: two runs whose identities begin alike; divide the plan into two folders")
    return jobs


def _readable(entry: Entry) -> str:
    config = entry.config
    parts = (config.method.name, config.backbone.name, entry.assignment.get("set", ""), f"seed{config.seed}")
    return "-".join(re.sub(r"[^\w.]+", "-", str(part)) for part in parts if part != "")


def _read_data(plan: Plan) -> list[tuple[str, bool]]:
    """Return for each training the identity of its data, decoded once for all that share it, and whether reliance is
    to be measured on it."""
    found: dict[str, tuple[str, bool]] = {}
    checked: dict[str, None] = {}
    problems: dict[str, None] = {}
    keys = []
    for config in (entry.config for entry in plan.entries):
        key = config.model_dump_json(include={"data", "saliency", "protocol"})
        keys.append(key)
        trained = f"{key} {config.method.name} {config.training.select}"
        if trained in checked:
            continue
        checked[trained] = None
        try:
            rows = read_rows(config)
            if key not in found:
                dataset = load_dataset(config.data, config.saliency, rows)
                found[key] = dataset.sha256, plan.reliance.measure and _has_reliance(dataset, plan.reliance.options)
        except DataError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise DataError(list(problems))
    return [found[key] for key in keys]


def _has_reliance(dataset: Dataset, options: RelianceOptions) -> bool:
    return any(len(pair_images(dataset, split, options).rows) for split in dataset.manifest.test_splits)


def _resolved(plan: Plan, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the content of ``plan.json``."""
    runs: dict[str, dict[str, Any]] = {}
    for entry, job in zip(plan.entries, jobs, strict=True):
        about = {"label": job.label, "row": entry.row, "kind": job.kind, "measured": job.reliance is not None}
        runs.setdefault(job.name, {"name": job.name, **about, "axes": entry.assignment})
    published = []
    for one in plan.published:
        numbers = []
        for number in one.numbers:
            found = [(e, job) for e, job in zip(plan.entries, jobs, strict=True) if e.matches(number.when)]
            if found:
                first, _ = found[0]
                group = Entry({k: v for k, v in first.assignment.items() if k not in AVERAGED}, first.config)
                names = [job.name for _, job in found]
                numbers.append({"label": group.label, "mean": number.mean, "sd": number.sd, "runs": names})
        published.append({**one.model_dump(exclude={"numbers"}), "numbers": numbers})
    return {"format": FORMAT, "title": plan.title, "runs": list(runs.values()), "published": published}
