"""Trainings per hour of a study's local engine, against a shell loop that starts `lookhere train` for each training.

    python benchmarks/study_throughput.py

All do the same trainings, cross-entropy and SAGE in several seeds on the synthetic irises, into new folders: the loop
one after the other with the whole device for each, the engine with one worker that has it all, and with several that
share it (--at-once: workers on a CPU, workers for each GPU otherwise). A small training is mostly the start of a
process, which the engine pays once for each worker; --size, --train, --epochs and --backbone show where that stops.
Other load on the machine is in the seconds, less so in the processor's. Takes about three minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import child
import machine
from child import Used

from lookhere.progress import Track

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
device = "{device}"
[axes]
seed = {seeds}
method = ["cross-entropy", "sage"]
"""


def lookhere(*arguments: str | Path) -> Used:
    """Run the command line in a process of its own."""
    return child.run(sys.executable, "-m", "lookhere", *arguments)


def measure(folder: Path, a: argparse.Namespace) -> dict[str, Used]:
    """Return what each way of doing the trainings used; see ``main`` for the options."""
    from lookhere.data.iris import make_iris

    at_once = [int(number) for number in a.at_once.split(",")]
    trainings = [(seed, method) for seed in range(a.seeds) for method in ("cross-entropy", "sage")]
    used: dict[str, Used] = {}
    data = make_iris(folder / "set", size=96, train=a.train, val=16, test=32)
    lookhere("check", data, "--set", f"data.size={a.size}")  # the images are decoded once
    with Track("measuring", len(trainings) * (len(at_once) + (not a.no_loop))) as track:
        if not a.no_loop:
            common = ["--data", data, "--backbone", a.backbone, "--weights", "random", "--device", a.device]
            for setting in (f"data.size={a.size}", f"training.epochs={a.epochs}", "training.batch_size=8"):
                common += ["--set", setting]
            each = []
            for seed, method in trainings:
                out = folder / f"loop/{method}-{seed}"
                each.append(lookhere("train", *common, "--method", method, "--seed", str(seed), "--out", out))
                track.advance(note="a loop of lookhere train")
            seconds, processor = (sum(values) for values in zip(*(one[:2] for one in each), strict=True))
            used["a loop of lookhere train"] = Used(seconds, processor, max(one.peak_mb for one in each), "")
        plan = folder / "plan.toml"
        values = {"size": a.size, "backbone": a.backbone, "epochs": a.epochs, "device": a.device}
        plan.write_text(PLAN.format(**values, seeds=list(range(a.seeds))))
        flag = "--workers" if a.device == "cpu" else "--per-device"
        for number in at_once:
            title = f"bench run {flag} {number}"
            used[title] = lookhere("bench", "run", plan, "--out", folder / f"study{number}", flag, str(number))
            track.advance(len(trainings), note=title)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--train", type=int, default=24, help="training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--at-once", default="1,2", help="trainings at a time, one call of the engine for each number")
    parser.add_argument("--no-loop", action="store_true", help="leave out the shell loop")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    machine.add_save(parser)
    a = parser.parse_args()
    child.end_on_sigterm()
    hardware = machine.describe(a.device)
    a.device = "cuda" if hardware["gpu"] else "cpu"
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        used = measure(Path(name), a)
    count = 2 * a.seeds
    about = f"{a.backbone}, {a.size} px, {a.train} images, {a.epochs} epoch(s); {hardware['cores']} cores"
    print(f"{count} trainings: {about}\n")
    print(f"{'':28} {'seconds':>8} {'processor':>10} {'per hour':>9} {'× first':>8}")
    first = next(iter(used.values())).seconds
    for title, one in used.items():
        per_hour = 3600 * count / one.seconds
        print(f"{title:28} {one.seconds:8.1f} {one.processor:10.1f} {per_hour:9.0f} {first / one.seconds:8.2f}")
    if a.save:
        given = {"backbone": a.backbone, "size": a.size, "images": a.train, "epochs": a.epochs, "trainings": count}
        times = {title: {"seconds": one.seconds, "processor": one.processor} for title, one in used.items()}
        ratios = {} if a.no_loop else {title: first / one.seconds for title, one in list(used.items())[1:]}
        machine.save("study", {**given, "times": times, "ratios": ratios}, a.device)


if __name__ == "__main__":
    main()
