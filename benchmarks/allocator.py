"""What it gains on a CPU that the C library keeps freed memory, as every training by lookhere does (glibc only).

    python benchmarks/allocator.py

The same steps of cross-entropy and of SAGE in processes that start in turn, with the library's defaults and with memory
kept; the ratios are medians over the pairs of processes. Takes about nine minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from typing import Any

import child
import machine

METHODS = ("cross-entropy", "sage")


def steps(backbone: str, size: int, count: int, repeats: int, kept: bool) -> dict[str, float]:
    """Return the median seconds of a step of each method in this process, after two that are not counted."""
    import torch
    from step_cost import make_batch, our_steps, seconds

    from lookhere.training.memory import keep_freed_memory

    warnings.simplefilter("ignore")
    if kept and not keep_freed_memory():
        raise SystemExit("memory cannot be kept: the C library is not glibc, or it was told otherwise (MALLOC_...)")
    device = torch.device("cpu")
    batch = make_batch(size, count, device)
    found = {}
    for name in METHODS:
        [(step, _)] = our_steps(name, backbone, batch)
        found[name] = statistics.median([seconds(step, device) for _ in range(2 + repeats)][2:])
    return found


def measure(backbone: str, size: int, count: int, repeats: int, pairs: int) -> dict[str, Any]:
    """Return medians of seconds, of the ratio kept to default, and peaks of resident memory."""
    this = (sys.executable, __file__, "--backbones", backbone, "--size", str(size), "--batch", str(count))
    ran: dict[str, list[child.Used]] = {"default": [], "kept": []}
    for _ in range(pairs):
        for mode, made in ran.items():
            made.append(child.run(*this, "--repeats", str(repeats), "--child", mode))
    times = {mode: [json.loads(used.output) for used in made] for mode, made in ran.items()}
    row: dict[str, Any] = {"backbone": backbone, "size": size, "batch": count}
    for name in METHODS:
        both = [[found[name] for found in times[mode]] for mode in ran]
        row[name] = {
            "seconds": dict(zip(ran, map(statistics.median, both), strict=True)),
            "ratio": statistics.median(kept / default for default, kept in zip(*both, strict=True)),
        }
    return row | {"peak_mb": {mode: max(used.peak_mb for used in made) for mode, made in ran.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="resnet18,resnet50", help="names with commas between them")
    parser.add_argument("--size", type=int, help="by default 96 and 224")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of a step in a process")
    parser.add_argument("--pairs", type=int, default=2, help="of processes")
    parser.add_argument("--child", choices=("default", "kept"), help=argparse.SUPPRESS)
    machine.add_save(parser)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(steps(a.backbones, a.size, a.batch, a.repeats, a.child == "kept")))
        return
    child.end_on_sigterm()
    print(f"{'':24} {'':14} {'default s':>10} {'kept s':>10} {'kept ÷ default':>15}")
    rows = []
    for backbone in a.backbones.split(","):
        for size in [a.size] if a.size else [96, 224]:
            rows.append(row := measure(backbone, size, a.batch, a.repeats, a.pairs))
            for name in METHODS:
                seconds, ratio = row[name]["seconds"], row[name]["ratio"]
                shown = f"{backbone}, {size} px"
                print(f"{shown:24} {name:14} {seconds['default']:10.3f} {seconds['kept']:10.3f} {ratio:15.3f}")
            peaks = ", ".join(f"{mode} {value:,.0f} MB" for mode, value in row["peak_mb"].items())
            print(f"{'':24} peak: {peaks}", flush=True)
    if a.save:
        machine.save("allocator", {"rows": rows}, "cpu")


if __name__ == "__main__":
    main()
