"""Writes imported samples: images, maps, manifest and provenance, all of it or nothing."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from lookhere.data.importers.pixels import crop_box, merge_maps, read_image, write_image, write_map
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.data.table import OPTIONAL, REQUIRED, counted
from lookhere.errors import DataError
from lookhere.progress import Track

if TYPE_CHECKING:
    from lookhere.data.importers.base import ImportOptions, Ledger, Sample

PROVENANCE = "provenance.json"
MANIFEST = "manifest.csv"
COLUMNS = (*REQUIRED, *OPTIONAL)
CHUNK = 256


class _Written(NamedTuple):
    """What became of one sample."""

    suffix: str = ""
    has_map: bool = False
    blank: bool = False
    rendering: str = ""
    problem: str = ""


def fingerprint(paths: Sequence[Path], out: Path) -> str:
    """Return a SHA-256 of the names, sizes and times of all files at or below ``paths``, but not in ``out``."""
    digest = hashlib.sha256()
    skip = os.path.realpath(out)
    for path in paths:
        for file in [str(path)] if path.is_file() else _files(path, skip):
            info = os.stat(file)
            digest.update(f"{file}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(folder: Path, skip: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(place, name)) != skip)
        yield from (name for name in sorted(os.path.join(place, name) for name in files) if os.path.exists(name))


def is_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Does ``out`` hold the import of this identity, with its manifest as it was written?"""
    try:
        record = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
        written = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return False
    return record.get("manifest_sha256") == written and all(record.get(key) == identity[key] for key in identity)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``out`` that takes its name when all went well, and is deleted otherwise."""
    part: Path | None = None
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        part.chmod(0o755)  # mkdtemp's folders are for their owner only
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{out}: disk full; nothing was written") from None
        raise DataError(f"{error.filename or out}: {error.strerror or error}; nothing was written to {out}") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def write_dataset(
    out: Path,
    samples: Sequence[Sample],
    splits: Sequence[str],
    options: ImportOptions,
    ledger: Ledger,
    record: dict[str, Any],
) -> None:
    """Write samples into the empty folder ``out``.

    Args:
        out: gets ``images/``, ``maps/``, ``provenance.json`` and, last, ``manifest.csv``.
        samples: with unique names.
        splits: of each sample.
        options: how maps are merged and stored.
        ledger: gets the warnings of writing.
        record: what the provenance starts with.

    Raises:
        DataError: all images and maps that cannot be read; or what the manifest's reader says about the result.
    """
    written: list[_Written] = []
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Track("importing images", len(samples)) as track,
    ):
        # Pillow warns about large images in the threads below; here it is an error.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(samples), CHUNK):
            for one in pool.map(lambda sample: _write(sample, options, out), samples[start : start + CHUNK]):
                written.append(one)
                track.advance()
    problems = [one.problem for one in written if one.problem]
    if problems:
        raise DataError(problems)
    blank = [sample.name for sample, one in zip(samples, written, strict=True) if one.blank]
    if blank:
        ledger.warnings.append(f"{counted(len(blank), 'map')} without any salient pixel, such as that of '{blank[0]}'")
    without = sum(not one.has_map for one in written)
    if without:
        ledger.warnings.append(f"{without} of {counted(len(samples), 'image')} without a map")
    text = _manifest(samples, splits, written)
    (out / MANIFEST).write_bytes(text)
    try:
        manifest = read_manifest(DataOptions(manifest=out / MANIFEST), SaliencyOptions(), training=False)
    except DataError as error:
        raise DataError([problem.replace(f"{out}{os.sep}", "") for problem in error.problems]) from None
    ledger.warnings += [warning.replace(f"{out}{os.sep}", "") for warning in manifest.warnings]
    renderings = Counter(one.rendering for one in written if one.rendering)
    provenance = {
        **record,
        "facts": {**ledger.facts, **({"dicom": dict(renderings)} if renderings else {})},
        "dropped": ledger.dropped,
        "warnings": ledger.warnings,
        "versions": _versions(),
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
    }
    (out / PROVENANCE).write_text(json.dumps(provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write(sample: Sample, options: ImportOptions, out: Path) -> _Written:
    try:
        image, rendering = read_image(sample.image, options.window)
        size = image.size
        box = crop_box(sample.crop, size) if sample.crop else None
        suffix = write_image(image, sample.image, out / "images" / sample.name, box)
        del image
        rendered = f"{rendering.modality}; {rendering.voi}; inverted {rendering.inverted}" if rendering else ""
        if not sample.maps:
            return _Written(suffix, rendering=rendered)
        saliency = merge_maps((maker(*size) for maker in sample.maps), options.merge)
        if not np.isfinite(saliency).all() or saliency.min() < 0 or saliency.max() > 1:
            raise DataError("its map has values outside [0, 1]")
        if box:
            saliency = saliency[box[1] : box[3], box[0] : box[2]]
        write_map(saliency, options.map_bits, out / "maps" / f"{sample.name}.png")
        return _Written(suffix, True, not saliency.any(), rendered)
    except DataError as error:
        return _Written(problem=f"{sample.image}: {error}")


def _manifest(samples: Sequence[Sample], splits: Sequence[str], written: Sequence[_Written]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for sample, split, one in zip(samples, splits, written, strict=True):
        saliency = f"maps/{sample.name}.png" if one.has_map else ""
        image = f"images/{sample.name}{one.suffix}"
        rows.writerow([image, sample.label, split, saliency, sample.type, sample.group, f"{sample.weight:.10g}"])
    return text.getvalue().encode()


def _versions() -> dict[str, str]:
    from lookhere import __version__

    return {
        "lookhere": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
