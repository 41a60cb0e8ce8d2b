"""One training from configuration to result, and the use of a finished one."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lookhere.backbone import create_backbone, resolve_weights
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import Manifest, read_manifest
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.evaluate import evaluate
from lookhere.evaluation.scores import Scores, write_scores
from lookhere.methods import METHODS, Method, create_method
from lookhere.training.checkpoint import write_tensors
from lookhere.training.config import Config, configure, load_config
from lookhere.training.fit import explained, fit, make_batches, predict, resolve_device
from lookhere.training.folder import RunFolder, read_json, sha256, write_json

FORMAT = 1


def train(config: Config, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train, predict and evaluate by one configuration, and return what ``result.json`` holds.

    Args:
        config: the configuration.
        out: the run folder; made if it is not there.
        resume: continue the run that ``out`` holds, or return its result if it is finished.

    Raises:
        LookhereError: configuration, data or training; see ``errors``. Nothing but the run folder is written.
    """
    # What can be refused at once is refused before the data is decoded, and all else before the folder is taken.
    device = resolve_device(config.training.device)
    resolve_weights(config.backbone)
    manifest = read_manifest(config.data, config.saliency, need_val=config.training.select != "last")
    check_trainable(manifest, config)
    dataset = load_dataset(config.data, config.saliency, manifest)
    torch.manual_seed(config.seed)
    method = build_method(config, len(manifest.classes))
    identity = config.identity(dataset.sha256)
    folder = RunFolder(out)
    with folder.start(config, identity, resume=resume) as finished, explained(config, method):
        if not finished:
            position = fit(method.to(device), dataset, config, folder)
            write_tensors(folder.weights, method.state_dict())
            seen = {manifest.type[row] for row in manifest.rows("train")}
            scores = predict_scores(method, dataset, config, ["val", *manifest.test_splits], seen)
            write_scores(folder.predictions, scores)
            result = {
                "format": FORMAT,
                "method": config.method.name,
                "backbone": config.backbone.name,
                "seed": config.seed,
                "classes": list(manifest.classes),
                "positive": manifest.positive,
                "positive_reason": manifest.positive_reason,
                "types_seen": sorted(seen - {""}),
                "identity": identity,
                "group": config.identity(dataset.sha256, seed=False),
                "data": describe_data(dataset),
                "selected_epoch": position.best_epoch,
                "select": config.training.select,
                "epochs": config.training.epochs,
                "parameters": sum(p.numel() for p in method.parameters()),
                "seconds": round(position.seconds, 3),
                "peak_memory_mb": peak_memory_mb(),
                "evaluation": evaluate(scores, positive=manifest.positive),
                "files": {path.name: sha256(path) for path in (folder.weights, folder.predictions, folder.metrics)},
            }
            write_json(folder.result, result)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # the weights and the result stand for them now
        return read_json(folder.result)


def check_trainable(manifest: Manifest, config: Config) -> None:
    """Raise DataError if the rows of a manifest cannot train or select by this configuration."""
    if not manifest.weight[manifest.rows("train")].any():
        raise DataError(f"{manifest.path}: all weights in train are 0; expected some above")
    if METHODS[config.method.name].guides != "nothing" and not any(
        manifest.saliency[i] for i in manifest.rows("train")
    ):
        raise DataError(
            f"{manifest.path}: no row in train has a saliency map, which method {config.method.name} needs; "
            "name them in a column saliency, set saliency.folder, or train cross-entropy"
        )
    lacking = set(range(len(manifest.classes))) - set(manifest.label[manifest.rows("val")].tolist())
    if config.training.select == "val_auroc" and lacking:
        names = ", ".join(manifest.classes[label] for label in sorted(lacking))
        raise DataError(
            f"{manifest.path}: split val has no row of class {names}, so no AUROC to select by; "
            "add some, or set training.select to val_accuracy or last"
        )


def build_method(config: Config, classes: int) -> Method:
    """Return the method of a configuration around its backbone, as training starts it."""
    return create_method(config.method, create_backbone(config.backbone, classes, config.data.size))


def predict_scores(
    method: Method, dataset: Dataset, config: Config, splits: Sequence[str], seen: Collection[str]
) -> Scores:
    """Return the raw logits of the rows of some splits; ``seen`` are the types that occurred in training."""
    manifest = dataset.manifest
    device = next(method.parameters()).device
    rows, logits = [], []
    for split in splits:
        if len(split_rows := manifest.rows(split)):
            rows.append(split_rows)
            logits.append(predict(method, make_batches(dataset, split, method, config.training, device))[0].numpy())
    order = np.concatenate(rows)
    kinds = [manifest.type[row] for row in order]
    return Scores(
        classes=manifest.classes,
        id=np.array([manifest.image[row] for row in order], dtype=object),
        split=manifest.split[order],
        label=manifest.label[order],
        type=np.array(kinds, dtype=object),
        type_seen=np.array(["" if not kind else "yes" if kind in seen else "no" for kind in kinds], dtype=object),
        group=np.array([manifest.group[row] for row in order], dtype=object),
        logits=np.concatenate(logits).astype(np.float64),
    )


@dataclass(frozen=True)
class FinishedRun:
    """A finished training, ready to predict."""

    config: Config
    result: dict[str, Any]
    method: Method

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> FinishedRun:
        """Load a run folder.

        Raises:
            UsageError: it is not finished, or its weights are not the ones that the result names.
        """
        folder = RunFolder(path)
        result = read_json(folder.result)
        if sha256(folder.weights) != result["files"][folder.weights.name]:
            raise UsageError(f"{folder.weights}: damaged: its SHA-256 is not the one in {folder.result.name}")
        config = load_config(folder.config)
        start = config.backbone.model_copy(update={"weights": "random"})
        method = build_method(config.model_copy(update={"backbone": start}), len(result["classes"]))
        method.load_state_dict(load_file(folder.weights))
        return cls(config, result, method.to(resolve_device(device)))

    def predict(self, manifest: Path, settings: Sequence[str] = ()) -> Scores:
        """Return the logits of every row of a manifest, which may be without labels.

        Args:
            manifest: CSV; images are read as they were for training.
            settings: ``data.…=`` and ``saliency.…=`` options that say where they are, such as ``data.root=…``.
        """
        for setting in settings:
            if not setting.startswith(("data.", "saliency.")) or setting.startswith(("data.size", "data.positive")):
                raise UsageError(f"--set {setting}: is fixed by the training of {self.config.method.name}")
        content = self.config.model_dump(mode="json", exclude_none=True)
        for name in ("root", "cache", "splits", "allow_outside"):
            content["data"].pop(name, None)
        content["saliency"].pop("folder", None)
        options = configure(
            content, settings, {"data.manifest": str(manifest), "data.positive": self.result["positive"]}
        )
        rows = read_manifest(
            options.data, options.saliency, labelled=False, classes=self.result["classes"], training=False
        )
        dataset = load_dataset(options.data, options.saliency, rows)
        splits = list(dict.fromkeys(rows.split.tolist()))
        return predict_scores(self.method, dataset, self.config, splits, self.result["types_seen"])


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Return what a result says of its data: name, hash, and the number of images and maps per split."""
    manifest = dataset.manifest
    readme = manifest.path.parent / "README.md"
    splits = dict.fromkeys(manifest.split.tolist())
    return {
        "name": manifest.path.parent.name,
        "sha256": dataset.sha256,
        "synthetic": readme.is_file() and "synthetic" in readme.read_text(encoding="utf-8", errors="replace").lower(),
        "counts": {split: len(manifest.rows(split)) for split in splits},
        "maps": {split: int((dataset.map_index[manifest.rows(split)] >= 0).sum()) for split in splits},
    }


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MiB: of the GPU if one is in use, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
