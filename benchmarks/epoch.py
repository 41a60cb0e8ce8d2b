"""The time of a training's epoch against its steps alone: what waiting for data costs.

    python benchmarks/epoch.py

A training by the package, on generated images in the decode cache, without validation. Before every tenth of its
steps the clock stops for a bare one: the same step of a second network, on one batch that stays. The epoch's time is
what ``metrics.jsonl`` gets, less those stops; it holds all that an epoch does but writing the checkpoint. Its ratio to
the number of steps times the median bare step would be 1 if data came for nothing. Of several epochs the first is left
out. Takes about ten minutes on two idle cores, where an epoch above 96 px is of a quarter of the images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import torch
from generated import write_set
from step_cost import make_batch, our_steps, seconds

from lookhere.bench.run import build_method, read_rows
from lookhere.data.cache import load_dataset
from lookhere.training.config import Config, configure
from lookhere.training.devices import resolve_device
from lookhere.training.fit import fit
from lookhere.training.folder import RunFolder


@dataclass
class Clock:
    """Takes bare steps in the course of a training, and the time that they take out of its epochs."""

    step: Any
    device: torch.device
    every: int
    taken: int = 0
    bare: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, *_: object) -> None:
        """Count a step that is about to be taken; every so often, take a bare one first."""
        if self.taken % self.every == 0:
            self.bare.append(seconds(self.step, self.device))  # what a GPU still does then is the training's time
        self.taken += 1

    def end_epoch(self, spent: float) -> None:
        """Note an epoch that took so many seconds, with the stops."""
        alone = spent - sum(self.bare)
        bare = statistics.median(self.bare)
        self.epochs.append({"seconds": alone, "steps": self.taken, "step": bare, "ratio": alone / (self.taken * bare)})
        self.bare, self.taken = [], 0


class Watched(RunFolder):
    """A run folder that tells a clock of each epoch."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self.clock = clock

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Note the epoch's time."""
        super().append_metrics(line)
        self.clock.end_epoch(line["seconds"])


def measure(config: Config, out: Path, every: int = 10) -> list[dict[str, float]]:
    """Train by a configuration and return of each epoch its seconds, steps, a bare step's seconds, and the ratio."""
    device = resolve_device(config.training.device)
    manifest = read_rows(config)
    dataset = load_dataset(config.data, config.saliency, manifest)
    torch.manual_seed(config.seed)
    method = build_method(config, len(manifest.classes)).to(device)
    batch = make_batch(config.data.size, config.training.batch_size, device)
    [(step, _)] = our_steps(config.method.name, config.backbone.name, batch, config.training.precision)
    for _ in range(2):
        step()
    clock = Clock(step, device, every)
    method.register_forward_pre_hook(clock)
    out.mkdir(parents=True)
    fit(method, dataset, dataset, config, Watched(out, clock))
    return clock.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, help="by default 4 on a GPU and 1 on a CPU")
    parser.add_argument("--sizes", default="96,224")
    parser.add_argument("--methods", default="cross-entropy,sage", help="of one stage")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    machine.add_save(parser)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    on_cpu = resolve_device(a.device).type == "cpu"
    epochs = a.epochs or (1 if on_cpu else 4)
    options = {"epochs": epochs, "batch_size": a.batch, "select": "last", "device": a.device, "precision": a.precision}
    rows = []
    print(f"{'':36} {'epoch s':>8} {'steps':>6} {'bare step s':>12} {'epoch ÷ steps':>14}")
    for size in map(int, a.sizes.split(",")):
        images = a.images // 4 if on_cpu and size > 96 else a.images
        with tempfile.TemporaryDirectory() as name:
            data = {"manifest": write_set(Path(name), images, side=size), "size": size, "cache": Path(name, "cache")}
            for method in a.methods.split(","):
                backbone = {"name": a.backbone, "weights": "random"}
                content = {"data": data, "backbone": backbone, "method": {"name": method}, "training": options}
                found = measure(configure(content), Path(name, method))
                kept = found[1:] or found
                middle = {key: statistics.median(epoch[key] for epoch in kept) for key in kept[0]}
                rows.append({"method": method, "size": size, "images": images, **middle, "epochs": found})
                epoch, steps, step, ratio = (middle[key] for key in ("seconds", "steps", "step", "ratio"))
                shown = f"{method}, {size} px, {images:,} images"
                print(f"{shown:36} {epoch:8.2f} {steps:6.0f} {step:12.4f} {ratio:14.3f}", flush=True)
    if a.save:
        about = {"backbone": a.backbone, "batch": a.batch, "precision": a.precision}
        machine.save("epoch", {**about, "rows": rows}, a.device)


if __name__ == "__main__":
    main()
