"""One training from configuration to result."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookhere import launch, processes
from lookhere.bench.result import types_in_training, write_result
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.controls import control_maps
from lookhere.data.manifest import Manifest, read_manifest
from lookhere.data.protocol import apply_protocol
from lookhere.data.table import UNUSED
from lookhere.errors import DataError
from lookhere.evaluation.scores import Scores
from lookhere.methods import METHODS, Method, create_method
from lookhere.training.config import Config
from lookhere.training.devices import resolve_device
from lookhere.training.fit import explained, fit
from lookhere.training.folder import RunFolder, read_json
from lookhere.training.prediction import make_batches, predict
from lookhere.weights import create_backbone, resolve_weights


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
            given = read_given(config)
            manifest = choose_rows(given, config)
            torch.manual_seed(config.seed)
            method = build_method(config, len(manifest.classes))
            dataset = load_dataset(config.data, config.saliency, manifest)
            whole = load_dataset(config.data, config.saliency, given).sha256
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
                    write_result(folder, config, method, dataset, taught, whole, scores, position)
            if launch.is_first():
                shutil.rmtree(folder.checkpoints, ignore_errors=True)  # the weights and the result stand for them now
            return processes.told(read_json(folder.result) if launch.is_first() else {})


def read_rows(config: Config) -> Manifest:
    """Return the rows that a configuration trains, selects and tests on, before anything is decoded.

    Raises:
        DataError: all that is wrong with the manifest, or rows that cannot train or select.
    """
    return choose_rows(read_given(config), config)


def read_given(config: Config) -> Manifest:
    """Return the manifest of a configuration as it is given, before its protocol.

    Raises:
        DataError: all that is wrong with it.
    """
    need_val = config.training.select != "last" and not config.protocol.makes_val
    return read_manifest(config.data, config.saliency, need_val=need_val)


def choose_rows(given: Manifest, config: Config) -> Manifest:
    """Return a manifest with the splits that a configuration's protocol assigns.

    Raises:
        DataError: rows that cannot train or select.
    """
    manifest = apply_protocol(given, config.protocol)
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
