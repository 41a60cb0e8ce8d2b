"""The main job on the synthetic iris set: cross-entropy and SAGE, several seeds each, compared on unseen attacks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lookhere.bench.report import write_report
from lookhere.bench.run import train
from lookhere.bench.store import find_runs, groups
from lookhere.bench.tables import comparison
from lookhere.data.iris import make_iris
from lookhere.progress import clock
from lookhere.training.config import Config, load_config


@dataclass(frozen=True)
class Scale:
    """How large the demonstration is; chosen by its duration, on two CPU cores."""

    size: int
    train: int
    val: int
    test: int
    backbone: str
    epochs: int


QUICK = Scale(size=96, train=400, val=120, test=600, backbone="resnet10t", epochs=4)
FULL = Scale(size=128, train=1200, val=240, test=1200, backbone="resnet18", epochs=12)
METHODS = ("cross-entropy", "sage")


def run_demo(out: Path, *, seeds: int = 3, full: bool = False) -> Path:
    """Train every method with every seed, print the comparison and return the path of the report.

    What is finished is not computed again, so an interrupted demonstration continues.

    Args:
        out: folder for the data, the runs and the report.
        seeds: trainings per method, from random weights.
        full: the larger version.
    """
    started = time.monotonic()
    scale = FULL if full else QUICK
    manifest = make_iris(out / "data", size=scale.size, train=scale.train, val=scale.val, test=scale.test)
    plan = [(method, seed) for seed in range(seeds) for method in METHODS]
    folders = [out / "runs" / f"{method}-seed{seed}" for method, seed in plan]
    for number, ((method, seed), folder) in enumerate(zip(plan, folders, strict=True), start=1):
        left = (time.monotonic() - started) / (number - 1) * (len(plan) - number + 1) if number > 1 else None
        note = f", about {clock(left)} left" if left else ""
        print(f"training {number} of {len(plan)}: {method}, seed {seed}{note}", file=sys.stderr)
        train(demo_config(manifest, scale, method, seed), folder, resume=True)
    table = comparison(groups(find_runs(folders).runs), kinds=("unseen", "seen", "all"))
    Console().print(table.rich())
    report = write_report(folders, out / "report.html")
    print("\nThe images are synthetic: the numbers show how the software works, not which method is better.")
    print(f"report: {report.resolve()}  ({clock(time.monotonic() - started)})")
    return report


def demo_config(manifest: Path, scale: Scale, method: str, seed: int) -> Config:
    """Return the configuration of one of the demonstration's trainings."""
    flags = {
        "seed": seed,
        "data.manifest": str(manifest),
        "data.size": scale.size,
        "method.name": method,
        "backbone.name": scale.backbone,
        "backbone.weights": "random",
        "training.epochs": scale.epochs,
    }
    return load_config(flags=flags)
