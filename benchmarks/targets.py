"""The targets of the project's speed beside what was measured on a machine.

    python benchmarks/targets.py                                # this machine
    python benchmarks/targets.py benchmarks/results/*.json      # all that are kept
    python benchmarks/targets.py --markdown

Every target is a ratio of two times, or of two peaks of memory, that one script takes in turn; `make bench` measures
them. A section that a machine's file lacks is "not measured".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from machine import has_bfloat16

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached."""

    what: str
    against: str
    section: str
    """Of a machine's file."""
    value: Callable[[Content], tuple[float, str]]
    """What was measured, from the section, and which of several it is."""
    limit: Callable[[Content], float]
    """What is to be reached on a machine."""
    lower: bool = True
    """Is less better?"""
    refuses: Callable[[Content], str] = lambda _: ""
    """Why the target is not for a machine."""


def ratio(name: str) -> Callable[[Content], tuple[float, str]]:
    """Return what reads a ratio of a comparison of steps."""
    return lambda section: (section["ratios"][name], section["backbone"])


def worst_epoch(section: Content) -> tuple[float, str]:
    """Return the largest ratio of an epoch to its steps."""
    row = max(section["rows"], key=lambda row: row["ratio"])
    return row["ratio"], f"worst of {len(section['rows'])}: {row['method']}, {row['size']} px, {row['images']} images"


def low_memory(section: Content) -> tuple[float, str]:
    """Return the peak of SAGE (joint batch norm, view_memory = low) over cross-entropy's, on the worst backbone."""
    rows = [row for row in section["rows"] if (row["view_memory"], row["batch_norm"]) == ("low", "joint")]
    row = max(rows, key=lambda row: row["over_cross_entropy"])
    return row["over_cross_entropy"], row["backbone"]


def best_engine(section: Content) -> tuple[float, str]:
    """Return how many times as many trainings per hour the engine makes as a loop, in its best setting."""
    title, value = max(section["ratios"].items(), key=lambda item: item[1])
    return value, title


def needs_gpu(hardware: Content) -> str:
    return "" if hardware["gpu"] else "needs a GPU"


def needs_cpu(hardware: Content) -> str:
    if hardware["gpu"]:
        return "for a CPU"
    return "" if has_bfloat16(dict(hardware)) else "needs bfloat16 units"


def always(limit: float) -> Callable[[Content], float]:
    return lambda _: limit


STEP, FLOAT32, BFLOAT16 = "step {}, 224 px, batch 20, {}", "float32", "bfloat16"
TARGETS = (
    *(
        Target(
            f"SAGE step ÷ cross-entropy step, {backbone}",
            "the floor, 4",
            STEP.format(backbone, FLOAT32),
            ratio("sage_to_cross_entropy"),
            always(4.05),
        )
        for backbone in ("resnet50", "densenet121")
    ),
    Target(
        "SAGE step in bfloat16 ÷ literal SAGE step",
        "what one writes from the paper",
        STEP.format("resnet50", BFLOAT16),
        ratio("sage_to_literal"),
        always(0.30),
        refuses=needs_gpu,
    ),
    Target(
        "SAGE step in bfloat16 ÷ literal SAGE step, on a CPU",
        "what one writes from the paper",
        STEP.format("resnet50", BFLOAT16),
        ratio("sage_to_literal"),
        always(0.38),
        refuses=needs_cpu,
    ),
    Target(
        "views and loss terms ÷ SAGE step",
        "the rest of the step",
        STEP.format("resnet18", FLOAT32),
        ratio("overhead"),
        always(0.02),
    ),
    Target(
        "epoch ÷ its steps alone, images from the decode cache", "no wait for data", "epoch", worst_epoch, always(1.03)
    ),
    Target(
        'peak memory, SAGE ÷ cross-entropy, view_memory = "low"',
        "views one after the other",
        "memory",
        low_memory,
        always(1.6),
    ),
    Target(
        "trainings per hour, bench run ÷ a shell loop",
        "one process for each training",
        "study",
        best_engine,
        lambda hardware: 2.0 if hardware["gpu"] else 1.5,
        lower=False,
    ),
)


def table(results: Content) -> list[tuple[str, str, str, str, str]]:
    """Return for each target: what it is, what it is measured against, the target, the measured value, the verdict."""
    hardware, sections = results["machine"], results["sections"]
    rows = []
    for target in TARGETS:
        limit = target.limit(hardware)
        wanted = f"{'≤' if target.lower else '≥'} {limit:g}"
        shown, verdict = "", target.refuses(hardware) or "not measured"
        if not target.refuses(hardware) and target.section in sections:
            value, which = target.value(sections[target.section])
            shown = f"{value:.3f} ({which})"
            verdict = "met" if (value <= limit if target.lower else value >= limit) else "not met"
        rows.append((target.what, target.against, wanted, shown, verdict))
    return rows


def text(results: Content, markdown: bool = False) -> str:
    """Return the table of a machine below a line that says what it is."""
    hardware, sections = results["machine"], results["sections"].values()
    name = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores, {' '.join(hardware['flags'])}"
    versions = sorted({f"torch {section['versions']['torch']}" for section in sections})
    days = sorted(section["date"][:10] for section in sections)
    when = f"; {days[0]} to {days[-1]}" if days else ""
    about = f"{name}; {hardware['memory_gb']} GB; {', '.join(versions)}{when}"
    rows = [("what", "against", "target", "measured", ""), *table(results)]
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, "| --- | --- | ---: | ---: | --- |")
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        lines = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([about, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="results of machines; by default those of this one")
    parser.add_argument("--markdown", action="store_true", help="as a table for the documentation")
    parser.add_argument("--device", default="auto", help="of this machine")
    a = parser.parse_args()
    for path in a.files or [machine.RESULTS / machine.file_name(machine.describe(a.device))]:
        if path.exists():
            print(text(machine.load(path), a.markdown) + "\n")
        else:
            print(f"{path.name}: nothing was measured on this machine yet; make bench does it")


if __name__ == "__main__":
    main()
