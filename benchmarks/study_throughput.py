"""Trainings per hour of a study's local engine, against a shell loop that starts `lookhere train` for each training.

    python benchmarks/study_throughput.py

All do the same trainings, cross-entropy and SAGE in several seeds on the synthetic irises, into new folders: the loop
one after the other with all cores for each, the engine with one worker that has all cores, and with two that share
them. A small training is mostly the start of a process, which the engine pays once for each worker; --size, --train,
--epochs and --backbone show where that stops. Other load on the machine is in the seconds, less so in the processor's.
Takes about three minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAN = """
title = "throughput"
[data]
manifest = "set/manifest.csv"
size = {size}
[backbone]
name = "{backbone}"
weights = "random"
[training]
epochs = {epochs}
batch_size = 8
device = "cpu"
[axes]
seed = {seeds}
method = ["cross-entropy", "sage"]
"""


def lookhere(*arguments: str | Path) -> tuple[float, float]:
    """Run the command line in a process of its own; return the seconds and the processor's seconds that it took."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lookhere", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, spent


def loop(folder: Path, a: argparse.Namespace) -> tuple[float, float]:
    settings = [f"data.size={a.size}", f"training.epochs={a.epochs}", "training.batch_size=8"]
    common = ["--data", folder / "set/manifest.csv", "--backbone", a.backbone, "--weights", "random", "--device", "cpu"]
    common += [word for setting in settings for word in ("--set", setting)]
    times = [
        lookhere("train", *common, "--method", method, "--seed", str(seed), "--out", folder / f"loop/{method}-{seed}")
        for seed in range(a.seeds)
        for method in ("cross-entropy", "sage")
    ]
    return sum(wall for wall, _ in times), sum(spent for _, spent in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--train", type=int, default=24, help="training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--workers", default="1,2", help="of the engine, one call of it for each")
    parser.add_argument("--no-loop", action="store_true", help="leave out the shell loop")
    a = parser.parse_args()
    from lookhere.data.iris import make_iris

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        make_iris(folder / "set", size=96, train=a.train, val=16, test=32)
        values = {"size": a.size, "backbone": a.backbone, "epochs": a.epochs, "seeds": list(range(a.seeds))}
        (folder / "plan.toml").write_text(PLAN.format(**values))
        lookhere("check", folder / "set/manifest.csv", "--set", f"data.size={a.size}")  # the images are decoded once
        times = [] if a.no_loop else [("a loop of lookhere train", *loop(folder, a))]
        for number, workers in enumerate(a.workers.split(",")):
            run = ("bench", "run", folder / "plan.toml", "--out", folder / f"study{number}", "--workers", workers)
            times.append((f"bench run --workers {workers}", *lookhere(*run)))
    count = 2 * a.seeds
    print(
        f"{count} trainings: {a.backbone}, {a.size} px, {a.train} images, {a.epochs} epoch(s); {os.cpu_count()} cores\n"
    )
    print(f"{'':28} {'seconds':>8} {'processor':>10} {'per hour':>9} {'× first':>8}")
    for title, wall, spent in times:
        print(f"{title:28} {wall:8.1f} {spent:10.1f} {3600 * count / wall:9.0f} {times[0][1] / wall:8.2f}")
    print(json.dumps({"arguments": vars(a), "machine": platform.processor() or platform.machine(), "times": times}))


if __name__ == "__main__":
    main()
