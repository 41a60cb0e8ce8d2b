"""The main job on the synthetic iris set: several methods, several seeds each, compared on unseen attacks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lookhere.bench.groups import groups
from lookhere.bench.report import write_report
from lookhere.bench.run import train
from lookhere.bench.store import find_runs
from lookhere.bench.tables import comparison
from lookhere.data.iris import make_iris
from lookhere.errors import UsageError, nearest
from lookhere.methods import METHODS
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
MANY = 4
"""Of more methods than this, one seed is trained: all of them then take 10 minutes on two cores."""


def run_demo(out: Path, *, methods: str = "cross-entropy,sage", seeds: int | None = None, full: bool = False) -> Path:
    """Train some methods with several seeds, print the comparison and return the path of the report.

    What is finished is not computed again, so an interrupted demonstration continues.

    Args:
        out: folder for the data, the runs and the report.
        methods: names with commas between them, or ``all``.
        seeds: trainings per method, from random weights; by default 3, or 1 of many methods.
        full: the larger version.

    Raises:
        UsageError: a method that does not exist.
    """
    names = list(METHODS) if methods == "all" else list(dict.fromkeys(methods.replace(" ", "").split(",")))
    for name in names:
        if name not in METHODS:
            raise UsageError(f"--methods: there is no method '{name}'{nearest(name, METHODS)}")
    seeds = seeds or (3 if len(names) <= MANY else 1)
    started = time.monotonic()
    scale = FULL if full else QUICK
    manifest = make_iris(out / "data", size=scale.size, train=scale.train, val=scale.val, test=scale.test)
    plan = [(method, seed) for seed in range(seeds) for method in names]
    folders = [out / "runs" / f"{method}-seed{seed}" for method, seed in plan]
    spent: list[float] = []
    for number, ((method, seed), folder) in enumerate(zip(plan, folders, strict=True), start=1):
        note = f", about {clock(sum(spent) / len(spent) * (len(plan) - number + 1))} left" if spent else ""
        print(f"training {number} of {len(plan)}: {method}, seed {seed}{note}", file=sys.stderr)
        begun, finished = time.monotonic(), (folder / "result.json").is_file()
        train(demo_config(manifest, scale, method, seed), folder, resume=True)
        spent += [] if finished else [time.monotonic() - begun]
    table = comparison(groups(find_runs(folders).runs), kinds=("unseen", "seen", "all"))
    Console().print(table.rich())
    report = write_report(folders, out / "report.html")
    print("\nThe images are synthetic: the numbers show how the software works, not which method is better.")
    print(f"report: {report.resolve()}  ({clock(time.monotonic() - started)})")
    return report


def demo_config(manifest: Path, scale: Scale, method: str, seed: int) -> Config:
    """Return the configuration of one of the demonstration's trainings."""
    flags: dict[str, object] = {
        "seed": seed,
        "data.manifest": str(manifest),
        "data.size": scale.size,
        "method.name": method,
        "backbone.name": METHODS[method].network or scale.backbone,
        "backbone.weights": "random",
        "training.epochs": scale.epochs,
    }
    if "map_epochs" in METHODS[method].Options.model_fields:  # its small batches make this stage the longer one
        flags["method.map_epochs"] = 1
    return load_config(flags=flags)
