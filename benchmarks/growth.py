"""How costs grow: a step with batch, resolution and network; an epoch with its images; a study with its trainings.

    python benchmarks/growth.py step            # batches of 1 to 256, 96 to 448 px, resnet18 to efficientnet-b7
    python benchmarks/growth.py images          # 1,000 to 1,000,000 images
    python benchmarks/growth.py plans           # studies of 1 to 10,000 trainings
    python benchmarks/growth.py plans --quick   # the small ends

**step** times whole steps of cross-entropy and SAGE in turn. **images** decodes a manifest of generated images, whose
files repeat, and then, in a process of its own, reads the manifest, opens the cache and gathers an epoch's batches,
without a network. **plans** copies two real trainings, of cross-entropy and SAGE, to a study of many: groups of ten
seeds that differ in ``method.alpha``, each with numbers and predictions of its own; and asks ``lookhere bench`` for its
status and its report, in a process each.

A table ends with the exponent a of time ~ n**a, fitted by least squares on the larger half of the sizes: 1 is linear.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import hashlib
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import child
import machine
import numpy as np
from generated import write_set

from lookhere.progress import Track

Row = dict[str, Any]
SEEDS = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAN = """
title = "growth"
[data]
manifest = "set/manifest.csv"
size = 32
[backbone]
name = "test_resnet"
weights = "random"
[training]
epochs = 1
device = "cpu"
[axes]
method = ["cross-entropy", "sage"]
[reliance]
bootstrap = 0
"""


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return a of values ~ sizes**a, fitted on the larger half of the sizes (two at least); NaN for a single one."""
    kept = len(sizes) - max(2, math.ceil(len(sizes) / 2))
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes[kept:]), np.log(values[kept:]), 1)[0])


# step


def measure_step(a: argparse.Namespace) -> list[Row]:
    """Return the seconds of a step of cross-entropy and SAGE along each axis."""
    from lookhere.training.devices import resolve_device

    warnings.simplefilter("ignore")
    device = resolve_device(a.device)
    few = a.batch or (2 if device.type == "cpu" else 20)
    batches = (1, 2, 4, 8) if a.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    sizes = (64, 96) if a.quick else (96, 160, 224, 320, 448)
    networks = ["resnet18"]
    if not a.quick:
        networks += ["resnet50", "densenet121", "tf_efficientnet_lite0", "tf_efficientnet_b3", "tf_efficientnet_b7"]
    points = [("batch", "resnet18", 64 if a.quick else 96, count) for count in batches]
    points += [("size", "resnet18", size, few) for size in sizes]
    points += [("backbone", name, 64 if a.quick else 224, few) for name in networks]
    rows = []
    with Track("measuring", len(points)) as track:
        for axis, network, size, count in points:
            rows.append({"axis": axis, **_steps(network, size, count, a)})
            track.advance(note=f"{network}, {size} px, batch {count}")
    return rows


def _steps(network: str, size: int, count: int, a: argparse.Namespace) -> Row:
    from step_cost import make_batch, measure, our_steps, paired

    from lookhere.training.devices import resolve_device

    device = resolve_device(a.device)
    batch = make_batch(size, count, device)
    steps = {name: our_steps(name, network, batch, a.precision) for name in ("cross-entropy", "sage")}
    times = measure(steps, a.repeats, device, budget=a.seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    del steps
    gc.collect()
    about = {
        "backbone": network,
        "size": size,
        "batch": count,
        "sage_to_cross_entropy": paired(times, "sage", "cross-entropy"),
    }
    return {**about, **medians}


def print_step(rows: Sequence[Row]) -> dict[str, float]:
    """Print the tables of the three axes and return their exponents: over images, and over pixels of an image."""
    found = {}
    for axis, of in (("batch", "images"), ("size", "pixels"), ("backbone", "")):
        some = [row for row in rows if row["axis"] == axis]
        print(f"\n{axis:24} {'cross-entropy s':>16} {'per image ms':>13} {'SAGE s':>10} {'÷':>6}")
        for row in some:
            plain, sage = row["cross-entropy"], row["sage"]
            shown = f"{row[axis]}"
            print(
                f"{shown:24} {plain:16.4f} {1e3 * plain / row['batch']:13.2f} {sage:10.4f} "
                f"{row['sage_to_cross_entropy']:6.2f}"
            )
        if of:
            counts = [row[axis] ** (2 if axis == "size" else 1) for row in some]
            for name in ("cross-entropy", "sage"):
                found[f"{name} over {of}"] = exponent(counts, [row[name] for row in some])
                print(f"{name}: time ~ {of} ** {found[f'{name} over {of}']:.2f}")
    return found


# images


def measure_images(a: argparse.Namespace) -> list[Row]:
    """Return what data sets of many images cost, without a network."""
    sizes = a.sizes or ([100, 1000] if a.quick else [1000, 10_000, 100_000, 1_000_000])
    rows = []
    with Track("measuring", sum(sizes)) as track:
        for count in sizes:
            with tempfile.TemporaryDirectory() as name:
                write_set(Path(name), count, files=100, side=a.side, mode="L")
                this = (sys.executable, __file__, "images", "--side", str(a.side), "--folder", name)
                build = child.run(*this)
                epoch = child.run(*this)
                row = {"images": count, "build": json.loads(build.output)["open"], **json.loads(epoch.output)}
                rows.append({**row, "build_peak_mb": build.peak_mb, "peak_mb": epoch.peak_mb})
            track.advance(count, note=f"{count:,} images")
    return rows


def gather(folder: Path, side: int) -> Row:
    """Read a manifest, open or build its cache and gather an epoch; return the seconds of each and the memory held."""
    from lookhere.data.batches import Batches
    from lookhere.data.cache import load_dataset
    from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest

    data = DataOptions(manifest=folder / "manifest.csv", size=side, cache=folder / "cache")
    start = time.perf_counter()
    manifest = read_manifest(data, SaliencyOptions(), need_val=False)
    read = time.perf_counter()
    dataset = load_dataset(data, SaliencyOptions(), manifest)
    opened = time.perf_counter()
    batches = Batches(dataset, manifest.rows("train"), batch_size=20, mean=MEAN, std=STD, shuffle_seed=0)
    for _ in batches.epoch(1):
        pass
    end = time.perf_counter()
    return {"manifest": read - start, "open": opened - read, "epoch": end - opened, "own_mb": _own_mb()}


def _own_mb() -> float | None:
    """Return the memory that this process holds for itself, without mapped files, in MB; none where unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return None


def print_images(rows: Sequence[Row]) -> dict[str, float]:
    """Print the table and return the exponents."""
    names = {"build": "building s", "manifest": "manifest s", "open": "opening s", "epoch": "epoch s"}
    print(f"\n{'images':>10}" + "".join(f"{title:>12}" for title in names.values()) + f"{'peak MB':>10}{'own MB':>10}")
    for row in rows:
        own = math.nan if row["own_mb"] is None else row["own_mb"]
        times = "".join(f"{row[name]:12.2f}" for name in names)
        print(f"{row['images']:10,}{times}{row['peak_mb']:10,.0f}{own:10,.0f}")
    found = {name: exponent([row["images"] for row in rows], [row[name] for row in rows]) for name in names}
    print("; ".join(f"{name} ~ images ** {value:.2f}" for name, value in found.items()))
    return found


# plans


def measure_plans(a: argparse.Namespace) -> list[Row]:
    """Return what the status and the report of studies of many trainings cost; none where it took too long."""
    sizes = a.sizes or ([1, 10, 100] if a.quick else [1, 10, 100, 1000, 10_000])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, Track("measuring", sum(sizes)) as track:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        real = train_both(folder)
        for count in sizes:
            study = folder / f"study-{count}"
            make_study(study, real, count)
            row: Row = {"runs": count}
            for what in (("status",), ("report", "--out", study / "report.html")):
                try:
                    used = child.run(
                        sys.executable, "-m", "lookhere", "bench", what[0], study, *what[1:], limit=a.limit
                    )
                    row |= {what[0]: used.seconds, f"{what[0]}_mb": used.peak_mb}
                except child.TooLong:
                    row |= {what[0]: None, f"{what[0]}_mb": None}
            rows.append(row)
            track.advance(count, note=f"{count:,} trainings")
    return rows


def train_both(folder: Path) -> Path:
    """Train cross-entropy and SAGE on a few small images and return the study's folder."""
    from lookhere.data.iris import make_iris

    make_iris(folder / "set", size=96, train=24, val=16, test=48)
    (folder / "plan.toml").write_text(PLAN)
    child.run(sys.executable, "-m", "lookhere", "bench", "run", folder / "plan.toml", "--out", folder / "real")
    return folder / "real"


def make_study(folder: Path, real: Path, count: int) -> None:
    """Write a finished study of ``count`` trainings: one group of cross-entropy, and SAGE with an alpha each."""
    plan = json.loads((real / "plan.json").read_text())
    sources = [(_Source(real / "runs" / run["name"]), run) for run in plan["runs"]]
    runs = []
    for number in range(count):
        group, seed = divmod(number, SEEDS)
        source, listed = sources[min(group, 1)]
        name = f"{source.result['method']}-{group}-seed{seed}-{number:08x}"
        source.write(folder / "runs" / name, group, seed, number)
        runs.append({**listed, "name": name, "label": f"{name}", "axes": {**listed["axes"], "seed": seed}})
    (folder / "plan.json").write_text(json.dumps({**plan, "runs": runs}))


class _Source:
    """A finished training that is copied with other numbers."""

    def __init__(self, folder: Path) -> None:
        self.result = json.loads((folder / "result.json").read_text())
        self.config = (folder / "run.toml").read_text()
        with (folder / "predictions.csv").open(newline="") as file:
            self.header, *self.predictions = list(csv.reader(file))
        self.same = {
            name: (folder / name).read_bytes() for name in ("environment.json", "metrics.jsonl", "reliance.json")
        }

    def write(self, folder: Path, group: int, seed: int, number: int) -> None:
        """Write the copy of a group and seed; ``number`` is its own."""
        draw = np.random.default_rng(number)
        folder.mkdir(parents=True)
        for name, content in self.same.items():
            (folder / name).write_bytes(content)
        alpha = (group % 10_000) / 10_000
        text = self.config.replace("seed = 0", f"seed = {seed}", 1).replace("alpha = 0.5", f"alpha = {alpha}", 1)
        (folder / "run.toml").write_text(text)
        logits = [index for index, name in enumerate(self.header) if name.startswith("logit_")]
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        for row in self.predictions:
            row = row.copy()
            for index in logits:
                row[index] = str(np.float32(float(row[index]) + draw.normal(0, 0.5)))
            writer.writerow(row)
        predictions = out.getvalue().encode()
        (folder / "predictions.csv").write_bytes(predictions)
        result = copy.deepcopy(self.result)
        shift = float(draw.normal(0, 0.02))
        _shift(result["evaluation"], shift)
        result |= {"seed": seed, "identity": _digest("run", number), "group": _digest("group", group)}
        result["files"]["predictions.csv"] = hashlib.sha256(predictions).hexdigest()
        (folder / "result.json").write_text(json.dumps(result, indent=1))


def _shift(content: Any, by: float) -> None:
    """Move every metric's value and interval by an amount, within [0, 1]."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in ("value", "low", "high") and isinstance(value, float) and 0 <= value <= 1:
                content[key] = min(1.0, max(0.0, value + by))
            else:
                _shift(value, by)
    elif isinstance(content, list):
        for value in content:
            _shift(value, by)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def print_plans(rows: Sequence[Row]) -> dict[str, float]:
    """Print the table and return the exponents."""
    print(f"\n{'trainings':>10}" + "".join(f"{what + ' s':>12}{what + ' MB':>12}" for what in ("status", "report")))
    for row in rows:
        cells = ("status", "status_mb", "report", "report_mb")
        shown = "".join(f"{'too long':>12}" if row[cell] is None else f"{row[cell]:12,.1f}" for cell in cells)
        print(f"{row['runs']:10,}{shown}")
    found = {}
    for what in ("status", "report"):
        done = [row for row in rows if row[what] is not None]
        found[what] = exponent([row["runs"] for row in done], [row[what] for row in done])
    print("; ".join(f"{what} ~ trainings ** {value:.2f}" for what, value in found.items()))
    return found


KINDS: dict[str, tuple[Callable[[argparse.Namespace], list[Row]], Callable[[Sequence[Row]], dict[str, float]]]] = {
    "step": (measure_step, print_step),
    "images": (measure_images, print_images),
    "plans": (measure_plans, print_plans),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="the small ends only")
    parser.add_argument(
        "--sizes", type=lambda text: [int(word) for word in text.split(",")], help="of images, of plans"
    )
    parser.add_argument("--side", type=int, default=32, help="of the images of a data set, in pixels")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a status or report may take")
    parser.add_argument("--batch", type=int, help="beside resolutions and networks; by default 20, 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=15, help="of a step")
    parser.add_argument("--seconds", type=float, default=10, help="for the repeats of a step, but three at least")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto", help="of steps")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    machine.add_save(parser)
    a = parser.parse_args()
    if a.folder:
        print(json.dumps(gather(a.folder, a.side)))
        return
    child.end_on_sigterm()
    measure, show = KINDS[a.kind]
    rows = measure(a)
    found = show(rows)
    if a.save:
        exponents = {name: None if math.isnan(value) else value for name, value in found.items()}
        about = {"side": a.side} if a.kind == "images" else {"precision": a.precision} if a.kind == "step" else {}
        device = a.device if a.kind == "step" else "cpu"
        machine.save(f"growth {a.kind}", {**about, "rows": rows, "exponents": exponents}, device)


if __name__ == "__main__":
    main()
