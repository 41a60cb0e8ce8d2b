"""Images per second of the decoded cache against torchvision's ImageFolder, on generated photographs.

    python benchmarks/decode.py

Writes JPEG files of 1024 x 1024 pixels (as are NIH's chest X-rays and FFHQ's faces) to a temporary folder and measures,
each in a process of its own: building the cache; batches from it; and batches of ImageFolder with a DataLoader of 0, 1
and 2 workers, decoded, resized to 224 x 224 and normalised as the cache's are. The first epoch only warms up. Takes
about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import child
import machine
from generated import write_set

from lookhere.progress import Track

SIZE, BATCH = 224, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def passes(epoch: Callable[[int], Iterable[Any]], count: int, epochs: int) -> float:
    """Return images per second from the second epoch on."""
    for _ in epoch(0):
        pass
    start = time.perf_counter()
    for number in range(1, epochs + 1):
        for _ in epoch(number):
            pass
    return count * epochs / (time.perf_counter() - start)


def measure_cache(folder: Path, epochs: int) -> dict[str, float]:
    from lookhere.data.batches import Batches
    from lookhere.data.cache import load_dataset
    from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest

    data = DataOptions(manifest=folder / "manifest.csv", size=SIZE, cache=folder / "cache")
    manifest = read_manifest(data, SaliencyOptions(), need_val=False)
    start = time.perf_counter()
    dataset = load_dataset(data, SaliencyOptions(), manifest)
    build = len(dataset) / (time.perf_counter() - start)
    batches = Batches(dataset, manifest.rows("train"), batch_size=BATCH, mean=MEAN, std=STD, shuffle_seed=0)
    return {"build": build, "batches": passes(batches.epoch, len(dataset), epochs), "memory": memory(0)}


def measure_folder(folder: Path, epochs: int, workers: int) -> dict[str, float]:
    speed = image_folder_speed(folder, epochs, workers)  # its workers end with it, and then their memory is known
    return {"batches": speed, "memory": memory(workers)}


def image_folder_speed(folder: Path, epochs: int, workers: int) -> float:
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    dataset = ImageFolder(folder / "train", v2.Compose(steps))
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return passes(lambda _: loader, len(dataset), epochs)


def memory(workers: int) -> float:
    """Return the peak resident memory in MB: this process's, and the largest worker's times their number."""
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return (own + workers * worker) / unit


def run(*arguments: str) -> dict[str, Any]:
    """Measure in a process of its own, so that peaks of memory are apart."""
    return dict(json.loads(child.run(sys.executable, __file__, *arguments).output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=1024, help="of the files, in pixels")
    parser.add_argument("--epochs", type=int, default=2, help="measured, after the first")
    machine.add_save(parser)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "cache":
        print(json.dumps(measure_cache(options.folder, options.epochs)))
        return
    if options.only:
        print(json.dumps(measure_folder(options.folder, options.epochs, int(options.only))))
        return
    child.end_on_sigterm()
    with tempfile.TemporaryDirectory() as name:
        write_set(Path(name), options.images, side=options.side, maps=False)
        common = ("--folder", name, "--epochs", str(options.epochs))
        with Track("measuring", 4) as track:
            cache = run("--only", "cache", "--folder", name, "--epochs", str(10 * options.epochs))
            folders = {}
            for workers in (0, 1, 2):
                track.advance(note=f"ImageFolder, {workers} workers")
                folders[workers] = run("--only", str(workers), *common)
    best = max(folders, key=lambda workers: folders[workers]["batches"])
    rows = [
        ("cache, being built", cache["build"], cache["memory"]),
        ("cache, batches", cache["batches"], cache["memory"]),
        *((f"ImageFolder, {n} workers", one["batches"], one["memory"]) for n, one in folders.items()),
    ]
    files = f"{options.images} JPEG files of {options.side} x {options.side} pixels"
    print(f"{files}, batches of {BATCH} at {SIZE} x {SIZE}, {os.cpu_count()} CPUs")
    print(f"{'':24}{'images/s':>12}{'peak MB':>12}")
    for title, speed, peak in rows:
        print(f"{title:24}{speed:12,.0f}{peak:12,.0f}")
    ratio = cache["batches"] / folders[best]["batches"]
    print(f"batches from the cache are {ratio:.1f} times as fast as ImageFolder with {best} workers")
    if options.save:
        given = {"images": options.images, "side": options.side, "size": SIZE, "batch": BATCH}
        found = {"cache": cache, "image_folder": folders, "best_workers": best, "ratio": ratio}
        machine.save(f"decode {options.side} px", {**given, **found}, "cpu")


if __name__ == "__main__":
    main()
