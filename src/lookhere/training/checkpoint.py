"""Checkpoints: a folder per epoch, tensors in safetensors, the rest in JSON, each file with its SHA-256.

Every random choice of an epoch is seeded by the run's seed and the epoch, and the learning rate is a function of the
epoch: weights, optimiser and epoch are all there is to restore.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lookhere.errors import LookhereError, TrainingError, UsageError
from lookhere.training.folder import read_json, sha256, write_json

KEEP = 2


@dataclass(frozen=True)
class Position:
    """How far a training has come."""

    stage: int = 0
    """Index of the stage."""
    epoch: int = 0
    """Epochs of this stage that are done."""
    best_epoch: int = 0
    """The epoch of this stage that is selected so far; 0 before the first."""
    best_value: float | None = None
    """Its value of the selection metric."""
    seconds: float = 0.0
    """Time spent so far."""
    precision: str = ""
    """Arithmetic of this training, float32 or bfloat16; empty before its first epoch."""


def save_checkpoint(folder: Path, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint whole or not at all, then remove those that are neither recent nor the selected one.

    Raises:
        TrainingError: the disk is full; earlier checkpoints are untouched.
    """
    final = folder / _name(position.stage, position.epoch)
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, slot in state["state"].items() for name, value in slot.items()}
    try:
        partial.mkdir(parents=True)
        write_tensors(partial / "model.safetensors", model.state_dict())
        write_tensors(partial / "optimizer.safetensors", tensors)
        hashes = {file.name: sha256(file) for file in partial.iterdir()}
        write_json(partial / "state.json", {"position": asdict(position), "files": hashes})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{final}: checkpoint cannot be written: {_disk(folder, error)}") from error
    kept = {final.name}
    for epoch in range(position.epoch - KEEP + 1, position.epoch + 1):
        path = folder / _name(position.stage, epoch)
        if path.is_dir():  # what it selects is needed if a damaged newer one makes it the last
            kept |= {path.name, _name(position.stage, read_json(path / "state.json")["position"]["best_epoch"])}
    for other in folder.glob("*-*"):
        if other.name not in kept:
            shutil.rmtree(other, ignore_errors=True)


def latest_checkpoint(folder: Path) -> tuple[Position, Path] | None:
    """Return the newest whole checkpoint; damaged ones are named on standard error and passed over."""
    for path in sorted(folder.glob("*-*"), reverse=True):
        if path.suffix == ".partial":
            continue
        try:
            return Position(**read_checkpoint(path)["position"]), path
        except LookhereError as error:
            print(f"{error}; going back to the one before", file=sys.stderr)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint after checking its files.

    Raises:
        UsageError: a file is missing or does not have the recorded SHA-256.
    """
    state = read_json(path / "state.json")
    for name, expected in state["files"].items():
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise UsageError(f"{path / name}: damaged: its SHA-256 is not the recorded one")
    return state


def load_model(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a model of the same architecture, after checking its files."""
    read_checkpoint(path)
    model.load_state_dict(load_file(path / "model.safetensors"))


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser's state of a checkpoint."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def selected_checkpoint(folder: Path, position: Position) -> Path:
    """Return the folder of the selected epoch's checkpoint."""
    return folder / _name(position.stage, position.best_epoch)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, which refuses memory that is shared or not contiguous."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def _name(stage: int, epoch: int) -> str:
    return f"stage{stage}-{epoch:06d}"


def _disk(folder: Path, error: Exception) -> str:
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
    return f"disk full, {free / 2**20:.0f} MiB free; free some and use --resume" if full else str(error)
