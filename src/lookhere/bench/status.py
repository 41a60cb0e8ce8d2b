"""How far a study is, from the files in its folder alone: quick for ten thousand trainings, and at any time."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookhere.bench.engine import in_use
from lookhere.errors import UsageError

HEAD = 8192
"""Bytes of a result that are read for its duration, which stands before the long parts."""


class Pace:
    """How long trainings take: the mean of those of the same kind, or else of all."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count a training that has finished."""
        self.seconds.setdefault(kind, []).append(seconds)

    def left(self, kinds: Iterable[str]) -> float | None:
        """Return the seconds that trainings of these kinds will take one after the other; None if none is known."""
        everything = [seconds for several in self.seconds.values() for seconds in several]
        if not everything:
            return None
        means = {kind: sum(several) / len(several) for kind, several in self.seconds.items()}
        mean = sum(everything) / len(everything)
        return sum(means.get(kind, mean) for kind in kinds)


@dataclass
class Status:
    """How far a study is."""

    title: str
    runs: int
    done: int = 0
    running: list[dict[str, Any]] = field(default_factory=list)
    """Name, label, stage, epoch, epochs and the seconds since training began."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """Name, label and reason."""
    left: list[str] = field(default_factory=list)
    """Names of those that have not begun, or were interrupted."""
    seconds_left: float | None = None
    """Training time still needed at the pace so far, divided among those that are running now."""


def read_plan_json(folder: Path) -> dict[str, Any]:
    """Return the resolved plan of a study.

    Raises:
        UsageError: the folder holds none.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: holds no study; `lookhere bench run PLAN --out {folder}` makes one") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'plan.json'}: damaged: {error}; run the plan again") from None
    return content


def read_status(folder: Path) -> Status:
    """Return how far a study is."""
    plan = read_plan_json(folder)
    there, failures = (set(_names(folder / name)) for name in ("runs", "failed"))
    status = Status(plan["title"], len(plan["runs"]))
    pace, waiting = Pace(), []
    for run in plan["runs"]:
        name, path = run["name"], folder / "runs" / run["name"]
        last = ("result.json", "reliance.json") if run.get("measured") else ("result.json",)
        if name in there and all((path / file).exists() for file in last):
            status.done += 1
            if (seconds := read_seconds(path)) is not None:
                pace.add(run["kind"], seconds)
            continue
        waiting.append(run["kind"])
        if name in there and in_use(path):
            status.running.append({"name": name, "label": run["label"], **_progress(path)})
        elif f"{name}.json" in failures:
            failure = json.loads((folder / "failed" / f"{name}.json").read_text(encoding="utf-8"))
            status.failed.append({key: failure[key] for key in ("name", "label", "reason")})
        else:
            status.left.append(name)
    if (left := pace.left(waiting)) is not None:
        status.seconds_left = left / max(1, len(status.running))
    return status


def read_seconds(run: Path) -> float | None:
    """Return how long a finished run trained, without reading all of its result."""
    with (run / "result.json").open("rb") as file:
        found = re.search(rb'"seconds": ([0-9.e+-]+)', file.read(HEAD))
    return float(found[1]) if found else None


def _progress(run: Path) -> dict[str, Any]:
    """Return how far a training is that is running now."""
    try:
        began = (run / "metrics.jsonl").stat().st_mtime
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
        epochs = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))["training"]["epochs"]
    except (OSError, ValueError):  # it has only just begun
        return {"stage": None, "epoch": 0, "epochs": None, "seconds": 0.0}
    spent = sum(line["seconds"] for line in lines) + max(0.0, time.time() - began)
    last = lines[-1] if lines else {"stage": None, "epoch": 0}
    return {"stage": last["stage"], "epoch": last["epoch"], "epochs": epochs, "seconds": round(spent, 1)}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
