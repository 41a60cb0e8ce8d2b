"""The use of a finished training: to predict, and to measure what its network relies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import load_file

from lookhere.bench.run import build_method, check_maps_at_test, predict_scores
from lookhere.bench.store import FORMAT
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import read_manifest
from lookhere.data.protocol import apply_protocol
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.alterations import RelianceOptions
from lookhere.evaluation.reliance import measure_reliance
from lookhere.evaluation.scores import Scores
from lookhere.methods import Method
from lookhere.training.config import Config, configure, load_config
from lookhere.training.devices import resolve_device
from lookhere.training.folder import RunFolder, read_json, sha256, write_json
from lookhere.training.prediction import make_batches


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
