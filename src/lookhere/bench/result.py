"""What a training leaves behind: its weights, its predictions and, last, ``result.json``."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lookhere import processes
from lookhere.bench.store import FORMAT
from lookhere.data.cache import Dataset
from lookhere.data.manifest import Manifest
from lookhere.evaluation.evaluate import evaluate
from lookhere.evaluation.scores import Scores, write_scores
from lookhere.methods import Method
from lookhere.training.checkpoint import Position, write_tensors
from lookhere.training.config import Config
from lookhere.training.folder import RunFolder, sha256, write_json


def write_result(
    folder: RunFolder,
    config: Config,
    method: Method,
    dataset: Dataset,
    taught: Dataset,
    whole: str,
    scores: Scores,
    position: Position,
) -> None:
    """Write the weights, the predictions and, last, the result of a training to its folder.

    The result's ``group`` is what trainings share that a report averages over. They differ by their seed, and by their
    fold: what the folds of a cross-validation have in common is ``whole``, the identity of the data that they divide.
    """
    manifest = dataset.manifest
    write_tensors(folder.weights, method.state_dict())
    write_scores(folder.predictions, scores)
    group, shared = config.identity(dataset.sha256, seed=False), {}
    if config.protocol.kind == "group-folds":
        first = config.model_copy(update={"protocol": config.protocol.model_copy(update={"fold": 0})})
        group, shared = first.identity(whole, seed=False), {"whole_sha256": whole}
    stages = [folder.stage_weights(stage.name) for stage in method.stages()[:-1]]
    result = {
        "format": FORMAT,
        "method": config.method.name,
        "backbone": config.backbone.name,
        "seed": config.seed,
        "classes": list(manifest.classes),
        "positive": manifest.positive,
        "positive_reason": manifest.positive_reason,
        "types_seen": sorted(types_in_training(manifest)),
        "identity": config.identity(dataset.sha256),
        "group": group,
        "data": describe_data(dataset, taught) | shared,
        "selected_epoch": position.best_epoch,
        "select": config.training.select,
        "notes": [*method.notes, *describe_processes(method, folder)],
        "epochs": config.training.epochs,
        "parameters": sum(p.numel() for p in method.parameters()),
        "processes": processes.count(),
        "precision_used": position.precision,
        "seconds": round(position.seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
        "evaluation": evaluate(scores, positive=manifest.positive),
        "files": {path.name: sha256(path) for path in (folder.weights, *stages, folder.predictions, folder.metrics)},
    }
    write_json(folder.result, result)


def describe_data(dataset: Dataset, taught: Dataset) -> dict[str, Any]:
    """Return what a result says of its data: name, hash, and per split the number of images and of maps that guide.

    Of train they are the maps that training uses (``taught``), before ``saliency.missing`` stands in for others.
    """
    manifest = dataset.manifest
    readme = manifest.path.parent / "README.md"
    splits = dict.fromkeys(manifest.split.tolist())
    return {
        "name": manifest.path.parent.name,
        "sha256": dataset.sha256,
        "synthetic": readme.is_file() and "synthetic" in readme.read_text(encoding="utf-8", errors="replace").lower(),
        "counts": {split: len(manifest.rows(split)) for split in splits},
        "maps": {split: len((taught if split == "train" else dataset).rows(split, guided=True)) for split in splits},
    }


def types_in_training(manifest: Manifest) -> set[str]:
    """Return the types that occur in train."""
    return {manifest.type[row] for row in manifest.rows("train")} - {""}


def describe_processes(method: Method, folder: RunFolder) -> list[str]:
    """Return what a reader must know of a training that several processes shared, in some of its epochs at least."""
    used = dict.fromkeys(line.get("processes", 1) for line in folder.read_metrics())
    if list(used) == [1]:
        return []
    note = f"trained by {', then '.join(map(str, used))} processes that shared each batch"
    if any(isinstance(module, _BatchNorm) for module in method.modules()):
        note += "; batch norm normalised each share by its own statistics"
    return [note]


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MiB: of the GPU if one is in use, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
