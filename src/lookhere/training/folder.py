"""The run folder: everything about one training, in plain files that are readable without this package."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lookhere import launch, processes
from lookhere.errors import InUse, UsageError
from lookhere.training.config import PLACES, Config, flat, load_config

PACKAGES = ("lookhere", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn", "safetensors")


class RunFolder:
    """Paths and plain files of one run. A run is finished when ``result.json`` is there; it is written last.

    Args:
        path: the folder; made when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights.safetensors"
        self.predictions = path / "predictions.csv"
        self.result = path / "result.json"
        self.reliance = path / "reliance.json"

    def stage_weights(self, stage: str) -> Path:
        """Return where the weights lie with which a stage ended that was not the last."""
        return self.path / f"weights-{stage}.safetensors"

    @contextmanager
    def start(self, config: Config, identity: str, *, resume: bool) -> Iterator[bool]:
        """Hold the folder for this run; yields whether it was finished before.

        Of several processes that share the training, the first holds it for all of them.

        Raises:
            InUse: another process is training in the folder.
            UsageError: the folder cannot be written, holds another configuration, or holds a run of this
                configuration and ``resume`` is false.
        """
        if not launch.is_first():
            yield processes.told(False)
            return
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            finished = self._claim(config, identity, resume=resume)
        except Timeout:
            raise InUse(f"{self.path}: another process is training in this folder; take another --out") from None
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            yield processes.told(finished)
        finally:
            lock.release()

    def _claim(self, config: Config, identity: str, *, resume: bool) -> bool:
        held = [entry.name for entry in self.path.iterdir() if entry.name != ".lock" and entry.suffix != ".partial"]
        if not held or held == [self.environment.name]:
            write_json(self.environment, {**describe_environment(), "identity": identity})
            write_text(self.config, config.to_toml())
            return False
        if not self.config.is_file():
            raise UsageError(f"{self.path}: holds other files ({held[0]}, …); take another --out")
        if read_json(self.environment).get("identity") != identity:
            differences = _differences(load_config(self.config), config) or ["the data or the weights file"]
            raise UsageError(
                f"{self.path}: holds another run, which differs in {', '.join(differences)}; take another --out"
            )
        if not resume:
            state = "a finished" if self.result.is_file() else "an unfinished"
            raise UsageError(f"{self.path}: holds {state} run of this configuration; --resume continues it")
        return self.result.is_file()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one epoch's line to ``metrics.jsonl``, on disk when this returns."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the epochs recorded so far; a half-written last line, left by a kill, is not one of them."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewrite_metrics(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replace the recorded epochs, when a resumed run goes back to its last checkpoint."""
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to know about the machine, the versions and the command."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "processes": processes.count(),
        "threads": torch.get_num_threads(),
        "gpu": cuda,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git": _revision(),
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a run folder.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: is not a finished run: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: damaged: {error}") from None
    return content


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(before: Config, after: Config) -> list[str]:
    a, b = (flat(config.model_dump(mode="json")) for config in (before, after))
    names = [name for name in {**a, **b} if a.get(name) != b.get(name) and name not in PLACES]
    return [f"{name} ({a.get(name)} there, {b.get(name)} here)" for name in names]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Return the commit of the package's own checkout, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
