"""One training from configuration to result, and the use of a finished one."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from lookhere import launch, processes
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.controls import control_maps
from lookhere.data.manifest import Manifest, read_manifest
from lookhere.data.protocol import apply_protocol
from lookhere.data.table import UNUSED
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.alterations import RelianceOptions
from lookhere.evaluation.evaluate import evaluate
from lookhere.evaluation.reliance import measure_reliance
from lookhere.evaluation.scores import Scores, write_scores
from lookhere.methods import METHODS, Method, create_method
from lookhere.training.checkpoint import Position, write_tensors
from lookhere.training.config import Config, configure, load_config
from lookhere.training.devices import resolve_device
from lookhere.training.fit import explained, fit
from lookhere.training.folder import RunFolder, read_json, sha256, write_json
from lookhere.training.prediction import make_batches, predict
from lookhere.weights import create_backbone, resolve_weights

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
    device = resolve_device(config.training.device)
    with processes.joined(device):
        # What can be refused at once is refused before the data is decoded, and all else before the folder is taken.
        with processes.in_turn():
            resolve_weights(config.backbone)
            manifest = read_rows(config)
            torch.manual_seed(config.seed)
            method = build_method(config, len(manifest.classes))
            dataset = load_dataset(config.data, config.saliency, manifest)
        taught = control_maps(dataset, config.saliency, config.seed)
        check_training_maps(method, taught)
        check_maps_at_test(method, dataset)
        folder = RunFolder(out)
        with (
            folder.start(config, config.identity(dataset.sha256), resume=resume) as finished,
            explained(config, method),
        ):
            if not finished:
                position = fit(method.to(device), dataset, taught, config, folder)
                splits = ["val", *manifest.test_splits]
                scores = predict_scores(method, dataset, config, splits, types_in_training(manifest))
                if launch.is_first():
                    write_result(folder, config, method, dataset, taught, scores, position)
            if launch.is_first():
                shutil.rmtree(folder.checkpoints, ignore_errors=True)  # the weights and the result stand for them now
            return processes.told(read_json(folder.result) if launch.is_first() else {})


def write_result(
    folder: RunFolder,
    config: Config,
    method: Method,
    dataset: Dataset,
    taught: Dataset,
    scores: Scores,
    position: Position,
) -> None:
    """Write the weights, the predictions and, last, the result of a training to its folder."""
    manifest = dataset.manifest
    write_tensors(folder.weights, method.state_dict())
    write_scores(folder.predictions, scores)
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
        "group": config.identity(dataset.sha256, seed=False),
        "data": describe_data(dataset, taught),
        "selected_epoch": position.best_epoch,
        "select": config.training.select,
        "notes": [*method.notes, *describe_processes(method, folder)],
        "epochs": config.training.epochs,
        "parameters": sum(p.numel() for p in method.parameters()),
        "processes": processes.count(),
        "seconds": round(position.seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
        "evaluation": evaluate(scores, positive=manifest.positive),
        "files": {path.name: sha256(path) for path in (folder.weights, *stages, folder.predictions, folder.metrics)},
    }
    write_json(folder.result, result)


def read_rows(config: Config) -> Manifest:
    """Return the rows that a configuration trains, selects and tests on, before anything is decoded.

    Raises:
        DataError: all that is wrong with the manifest, or rows that cannot train or select.
    """
    need_val = config.training.select != "last" and not config.protocol.makes_val
    manifest = apply_protocol(read_manifest(config.data, config.saliency, need_val=need_val), config.protocol)
    check_trainable(manifest, config)
    return manifest


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


def check_training_maps(method: Method, dataset: Dataset) -> None:
    """Raise DataError if too few rows of train have the map that a method learns to predict."""
    manifest = dataset.manifest
    if any(stage.predicts == "map" for stage in method.stages()) and len(dataset.rows("train", guided=True)) < 2:
        raise DataError(
            f"{manifest.path}: fewer than two rows in train have a map that is not constant; method {method.name} "
            "learns to predict maps and needs more"
        )


def check_maps_at_test(method: Method, dataset: Dataset) -> None:
    """Raise DataError if rows lack the map that a method's predictions need."""
    manifest = dataset.manifest
    if method.needs_maps_at_test:
        rows = np.flatnonzero(~np.isin(manifest.split, ["train", UNUSED]) & ~dataset.guided).tolist()
        if lacking := [f"{manifest.where(row, 'saliency')}: no map, or a constant one" for row in rows]:
            raise DataError([f"method {method.name} reads each image's map at test time: {method.notes[0]}", *lacking])


def build_method(config: Config, classes: int) -> Method:
    """Return the method of a configuration around its backbone, as training starts it."""
    method = create_method(config.method, create_backbone(config.backbone, classes, config.data.size))
    method.check_size(config.data.size)
    return method


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
            logits.append(
                predict(method, make_batches(dataset, split_rows, method, config.training, device))[0].numpy()
            )
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
    weights: Path
    """The file that the method's weights are from."""

    @classmethod
    def load(cls, path: Path, device: str = "auto", *, predicts: Literal["label", "map"] = "label") -> FinishedRun:
        """Load a run folder.

        Args:
            path: the folder.
            device: as ``training.device``.
            predicts: what is wanted of the network. Maps are predicted with the weights that the last stage which
                learnt them ended with: a later stage changes the encoder and not its decoder.

        Raises:
            UsageError: it is not finished, or its weights are not the ones that the result names.
        """
        folder = RunFolder(path)
        result = read_json(folder.result)
        config = load_config(folder.config)
        start = config.backbone.model_copy(update={"weights": "random"})
        method = build_method(config.model_copy(update={"backbone": start}), len(result["classes"]))
        learnt = [stage.name for stage in method.stages()[:-1] if stage.predicts == predicts == "map"]
        weights = folder.stage_weights(learnt[-1]) if learnt else folder.weights
        if not weights.is_file() or sha256(weights) != result["files"][weights.name]:
            raise UsageError(f"{weights}: damaged: its SHA-256 is not the one in {folder.result.name}")
        method.load_state_dict(load_file(weights))
        return cls(config, result, method.to(resolve_device(device)).eval(), weights)

    def predict(self, manifest: Path, settings: Sequence[str] = ()) -> Scores:
        """Return the logits of every row of a manifest, which may be without labels.

        Args:
            manifest: CSV; images are read as they were for training.
            settings: ``data.…=`` and ``saliency.…=`` options that say where they are, such as ``data.root=…``.
        """
        dataset = self.read(manifest, settings, classes=self.result["classes"])
        check_maps_at_test(self.method, dataset)
        splits = list(dict.fromkeys(dataset.manifest.split.tolist()))
        return predict_scores(self.method, dataset, self.config, splits, self.result["types_seen"])

    def read(self, manifest: Path, settings: Sequence[str] = (), *, classes: Sequence[str] | None = None) -> Dataset:
        """Return the data of a manifest, which may be without labels, decoded as it was for training.

        Args:
            manifest: CSV.
            settings: as for ``predict``.
            classes: what labels must be among, the positive one last; by default they may be any.
        """
        for setting in settings:
            if not setting.startswith(("data.", "saliency.")) or setting.startswith(("data.size", "data.positive")):
                raise UsageError(f"--set {setting}: is fixed by the training of {self.config.method.name}")
        content = self.config.model_dump(mode="json", exclude_none=True)
        for name in ("root", "cache", "splits", "allow_outside", "positive"):
            content["data"].pop(name, None)
        content["saliency"].pop("folder", None)
        flags = {"data.manifest": str(manifest), "data.positive": classes[-1] if classes else None}
        options = configure(content, settings, flags)
        rows = read_manifest(options.data, options.saliency, labelled=False, classes=classes, training=False)
        return load_dataset(options.data, options.saliency, rows)

    def measure_reliance(
        self,
        manifest: Path | None = None,
        settings: Sequence[str] = (),
        options: RelianceOptions | None = None,
        *,
        bootstrap: int = 1000,
    ) -> dict[str, Any]:
        """Measure the reliance on the salient region; write ``reliance.json`` to the run folder and return its content.

        Args:
            manifest: CSV with test splits and maps; by default the one of the training.
            settings: as for ``predict``, with a manifest.
            options: how images are altered.
            bootstrap: number of resamples for the intervals.

        Raises:
            DataError: no test image has a map, or the data has changed since the training.
            UsageError: settings without a manifest; the run folder cannot be written.
        """
        classes = self.result["classes"]
        if manifest is None:
            if settings:
                raise UsageError(f"--set {settings[0]}: says where the images of --data are, which is not given")
            data = self.config.data.model_copy(update={"positive": self.result["positive"]})
            rows = read_manifest(data, self.config.saliency, classes=classes, training=False)
            rows = apply_protocol(rows, self.config.protocol)
            dataset = load_dataset(data, self.config.saliency, rows)
            if dataset.sha256 != self.result["data"]["sha256"]:
                raise DataError(
                    f"{data.manifest}: changed since the training; name it by --data to measure on it as it is"
                )
        else:
            dataset = self.read(manifest, settings, classes=classes)

        def batches(dataset: Dataset, rows: np.ndarray) -> Batches:
            device = next(self.method.parameters()).device
            return make_batches(dataset, rows, self.method, self.config.training, device)

        seen = self.result["types_seen"]
        content = {
            "format": FORMAT,
            "weights_sha256": sha256(self.weights),
            "data": {"name": dataset.manifest.path.parent.name, "sha256": dataset.sha256},
            **measure_reliance(self.method.predict, dataset, batches, options, types_seen=seen, bootstrap=bootstrap),
        }
        path = RunFolder(self.weights.parent).reliance
        try:
            write_json(path, content)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
        return content


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
