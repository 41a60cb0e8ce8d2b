"""The machine that is measured, and the file in ``benchmarks/results`` that keeps what was measured on it.

One file is one device: a section for each measurement, with its date, command line and versions. Nothing in it names
the host, its user or its folders.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that compute in bfloat16."""
FLAGS = ("avx2", "avx512f", "asimd", "sve", *BFLOAT16)


def describe(device: str = "auto") -> dict[str, Any]:
    """Return the hardware that a measurement on ``device`` runs on: processor, cores, memory, GPU."""
    import torch

    from lookhere.training.devices import resolve_device
    from lookhere.training.folder import describe_environment

    found = resolve_device(device)
    is_cuda = found.type == "cuda"
    return {
        "cpu": describe_environment()["cpu"],
        "flags": _flags(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "gpu": torch.cuda.get_device_name(found) if is_cuda else found.type if found.type != "cpu" else None,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(found).total_memory / 2**30) if is_cuda else None,
    }


def has_bfloat16(machine: dict[str, Any]) -> bool:
    """Does the processor of a machine compute in bfloat16?"""
    return bool(set(BFLOAT16) & set(machine["flags"]))


def file_name(machine: dict[str, Any]) -> str:
    """Return the name of a machine's file: its GPU, or else its processor, its cores and the widest vectors."""
    if machine["gpu"]:
        name = f"{machine['gpu']} {machine['gpu_memory_gb'] or ''}"
    else:
        width = [flag for flag in ("avx2", "avx512f", "amx_bf16", "sve") if flag in machine["flags"]]
        name = f"{machine['cpu']} {machine['cores']} cores {width[-1] if width else ''}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"


def add_save(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark its ``--save``."""
    parser.add_argument("--save", action="store_true", help="keep the numbers in benchmarks/results/<machine>.json")


def save(section: str, content: dict[str, Any], device: str = "auto", folder: Path = RESULTS) -> Path:
    """Put a section into the file of this machine, in the place of an earlier one of its name, and return the file.

    The file is replaced as a whole, and measurements that end at the same time wait for each other.
    """
    import torch
    from filelock import FileLock

    from lookhere.training.folder import describe_environment, write_json

    machine = describe(device)
    about = describe_environment()
    command = shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    versions = {name: about["packages"][name] for name in ("lookhere", "torch", "timm")}
    made = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "threads": torch.get_num_threads(),
        "versions": {**versions, "revision": about["git"], "python": about["python"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(machine)
    with FileLock(Path(tempfile.gettempdir()) / f"lookhere-{path.name}.lock"):
        sections = load(path)["sections"] if path.exists() else {}
        write_json(path, {"machine": machine, "sections": {**sections, section: {**made, **content}}})
    print(f"saved in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")
    return path


def load(path: Path) -> dict[str, Any]:
    """Return what was measured on a machine.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: damaged: {error}; delete it, or restore it") from None
    return content


def _flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    there = set(line[1].split()) if line else set()
    return [flag for flag in FLAGS if flag in there]


def _memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None
