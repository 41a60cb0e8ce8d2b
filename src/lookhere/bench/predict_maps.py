"""Writes a data set in which images without a saliency map have the one that a trained network predicts."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from lookhere.bench.finished import FinishedRun
from lookhere.data.cache import Dataset
from lookhere.data.decode import upright_size
from lookhere.data.importers.pixels import link_or_copy, write_map
from lookhere.data.importers.writing import COLUMNS, MANIFEST, PROVENANCE, new_folder
from lookhere.data.manifest import Manifest
from lookhere.errors import UsageError
from lookhere.progress import Track
from lookhere.training.folder import describe_environment, sha256, write_json
from lookhere.training.prediction import make_batches


class Predicted(NamedTuple):
    """What ``predict_maps`` wrote."""

    manifest: Path
    predicted: int
    """Images whose map is a predicted one."""
    kept: int
    """Images that kept a map of their own."""
    labelled: bool
    """Does every row have a label?"""


@torch.inference_mode()
def predict_maps(
    run: FinishedRun, manifest: Path, out: Path, settings: Sequence[str] = (), *, everything: bool = False
) -> Predicted:
    """Predict the maps that the images of a manifest lack, and write a manifest that has them all.

    ``out`` is a data set of its own, like an imported one: ``images/`` and ``maps/`` mirror the images' paths, images
    and given maps being hard links (copies on another disk). Predicted maps are 8-bit grey, of the size of the image.
    ``provenance.json`` tells the run and which images have a predicted map. All of it is written or nothing.

    Args:
        run: loaded with ``predicts="map"``.
        manifest: CSV; labels may be lacking, or be of other classes than the run's.
        out: a new or an empty folder.
        settings: as for ``FinishedRun.predict``.
        everything: predict maps of all images, those that have one included.

    Raises:
        UsageError: the run's method learns no maps, ``out`` holds something, or no image lacks a map.
        DataError: the manifest or its files; no disk space.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: is there and not empty; take another --out")
    side = run.config.data.size
    device = next(run.method.parameters()).device
    run.method.predict_map(torch.zeros(1, 3, side, side, device=device))  # refuses, if it learns none
    dataset = run.read(manifest, settings)
    rows = dataset.manifest
    wanted = {file: i for i, file in enumerate(rows.image_file) if everything or not rows.saliency[i]}
    if not wanted:
        raise UsageError(f"{manifest}: every image has a map of its own; --all predicts one for each none the less")
    images, maps, own = _places(rows, everything)
    with new_folder(out) as part:
        for file, place in {**dict(zip(rows.image_file, images, strict=True)), **own}.items():
            link_or_copy(rows.root / file, part / place)
        _write_maps(run, dataset, sorted(wanted.values()), part, maps)
        if (readme := rows.path.parent / "README.md").is_file():
            link_or_copy(readme, part / readme.name)  # says among others whether the images are synthetic
        digest = _write_manifest(part / MANIFEST, rows, images, maps)
        predicted = sorted({images[i] for i in wanted.values()})
        write_json(
            part / PROVENANCE,
            {
                "title": f"Saliency maps predicted by {run.method.name}",
                "run": {key: run.result[key] for key in ("identity", "method", "backbone", "seed", "positive")},
                "weights": {"file": str(run.weights.absolute()), "sha256": sha256(run.weights)},
                "source": {"manifest": str(rows.path), "manifest_sha256": sha256(rows.path), "data": dataset.sha256},
                "predicted": predicted,
                "environment": describe_environment(),
                "manifest_sha256": digest,
            },
        )
    labelled = bool((rows.label >= 0).all())
    return Predicted(out / MANIFEST, len(predicted), len({*images} - {*predicted}), labelled)


def _places(rows: Manifest, everything: bool) -> tuple[list[str], list[str], dict[str, str]]:
    """Return the new paths of each row's image and map, and of each given map by its old one."""
    taken: set[str] = set()
    images: dict[str, str] = {}
    own: dict[str, str] = {}
    predicted: dict[str, str] = {}
    maps = []
    for file, given in zip(rows.image_file, rows.saliency, strict=True):
        if file not in images:
            parts = [part for part in PurePosixPath(file).parts if part not in ("/", "..")]
            below = parts[1:] if parts[0] == "images" and len(parts) > 1 else parts
            images[file] = _claim(PurePosixPath("images", *below), taken)
        beside = PurePosixPath("maps", *PurePosixPath(images[file]).parts[1:])
        old, known = (given, own) if given and not everything else (file, predicted)
        if old not in known:
            suffix = PurePosixPath(given).suffix if known is own else ".png"
            known[old] = _claim(beside.with_suffix(suffix), taken)
        maps.append(known[old])
    return [images[file] for file in rows.image_file], maps, own


def _claim(path: PurePosixPath, taken: set[str]) -> str:
    """Return a path, numbered if its name is taken on a disk that ignores case."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in count(2))
    free = next(str(one) for one in chain([path], numbered) if str(one).casefold() not in taken)
    taken.add(free.casefold())
    return free


def _write_maps(run: FinishedRun, dataset: Dataset, rows: list[int], part: Path, maps: list[str]) -> None:
    """Predict the maps of some rows and write each at the size of its image."""

    def write(row: int, values: np.ndarray) -> None:
        size = upright_size(dataset.manifest.image_path(row))
        resized = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
        write_map(np.asarray(resized).clip(0, 1), 8, part / maps[row])

    device = next(run.method.parameters()).device
    batches = make_batches(dataset, np.array(rows), run.method, run.config.training, device)
    run.method.eval()
    with ThreadPoolExecutor() as pool, Track("predicting maps", len(rows)) as track:
        for batch in batches.epoch():
            values = run.method.predict_map(batch.image)[:, 0].float().cpu().numpy()
            for _ in pool.map(write, batch.index.tolist(), values):
                track.advance()


def _write_manifest(path: Path, rows: Manifest, images: list[str], maps: list[str]) -> str:
    """Write the rows with their new paths, and return the SHA-256 of the file."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    labels = [*rows.classes, ""]  # label -1 is ""
    for i, (image, saliency) in enumerate(zip(images, maps, strict=True)):
        label = labels[rows.label[i]]
        lines.writerow([image, label, rows.split[i], saliency, rows.type[i], rows.group[i], f"{rows.weight[i]:.10g}"])
    content = text.getvalue().encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
