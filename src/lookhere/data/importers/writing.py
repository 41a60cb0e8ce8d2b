"""Writes imported samples: images, maps, manifest and provenance, all of it or nothing."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from lookhere.data.importers.pixels import check_crop, crop_map, merge_maps, read_image, write_image, write_map
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.data.table import OPTIONAL, REQUIRED, counted
from lookhere.errors import DataError
from lookhere.progress import Track

if TYPE_CHECKING:
    from lookhere.data.importers.base import ImportOptions, Ledger, Sample

PROVENANCE = "provenance.json"
MANIFEST = "manifest.csv"
BY_OBSERVER = "maps-by-observer"
COLUMNS = (*REQUIRED, *OPTIONAL)
CHUNK = 256


class _Written(NamedTuple):
    """What became of one sample."""

    suffix: str = ""
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
    """Does ``out`` hold the import of this identity, with its manifests as they were written?"""
    try:
        record = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
        written = {MANIFEST: record["manifest_sha256"]}
        written |= {one["manifest"]: one["manifest_sha256"] for one in record["by_observer"]}
        same = all(hashlib.sha256((out / name).read_bytes()).hexdigest() == sha for name, sha in written.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return same and all(record.get(key) == identity[key] for key in identity)


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
        out: gets ``images/``, ``maps/``, ``manifest.csv`` and ``provenance.json``; with ``options.observers``, also
            ``maps-by-observer/NAME/`` and ``manifest-NAME.csv``.
        samples: with unique names.
        splits: of each sample.
        options: how maps are merged and stored.
        ledger: gets the warnings of writing.
        record: what the provenance starts with.

    Raises:
        DataError: all images and maps that cannot be read; or what the manifest's reader says about the result.
    """
    written: list[_Written] = []
    observers, names = name_observers(samples) if options.observers else ([()] * len(samples), {})
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Track("importing images", len(samples)) as track,
    ):
        # Pillow warns about large images in the threads below; here it is an error.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(samples), CHUNK):
            chunk = slice(start, start + CHUNK)
            for one in pool.map(_write, samples[chunk], observers[chunk], repeat(options), repeat(out)):
                written.append(one)
                track.advance()
    problems = [one.problem for one in written if one.problem]
    if problems:
        raise DataError(problems)
    blank = [sample.name for sample, one in zip(samples, written, strict=True) if one.blank]
    if blank:
        ledger.warnings.append(f"{counted(len(blank), 'map')} without any salient pixel, such as that of '{blank[0]}'")
    without = sum(not sample.maps for sample in samples)
    if without:
        ledger.warnings.append(f"{without} of {counted(len(samples), 'image')} without a map")
    maps = [f"maps/{sample.name}.png" if sample.maps else "" for sample in samples]
    manifest_sha256 = _write_manifest(out / MANIFEST, samples, splits, written, maps)
    by_observer = []
    for name, observer in names.items():
        own = [name in of for of in observers]
        place = f"{BY_OBSERVER}/{name}"
        maps = [f"{place}/{sample.name}.png" if has else "" for sample, has in zip(samples, own, strict=True)]
        file = f"manifest-{name}.csv"
        sha256 = _write_manifest(out / file, samples, splits, written, maps)
        by_observer.append({"observer": observer, "manifest": file, "maps": sum(own), "manifest_sha256": sha256})
    try:
        manifest = read_manifest(DataOptions(manifest=out / MANIFEST), SaliencyOptions(), training=False)
    except DataError as error:
        raise DataError([problem.replace(f"{out}{os.sep}", "") for problem in error.problems]) from None
    ledger.warnings += [warning.replace(f"{out}{os.sep}", "") for warning in manifest.warnings]
    renderings = Counter(one.rendering for one in written if one.rendering)
    provenance = {
        **record,
        "facts": {**ledger.facts, **({"dicom": dict(renderings)} if renderings else {})},
        "by_observer": by_observer,
        "dropped": ledger.dropped,
        "warnings": ledger.warnings,
        "versions": _versions(),
        "manifest_sha256": manifest_sha256,
    }
    (out / PROVENANCE).write_text(json.dumps(provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def name_observers(samples: Sequence[Sample]) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Return who made each map of each sample, as names for files, and what the source calls each of these.

    Observers of whom the source tells no name are numbered. A second map of one image by the same observer counts as
    that of another one, and unlike observers never share a name.
    """
    known: dict[tuple[str, int], str] = {}
    taken: set[str] = set()
    named = []
    for sample in samples:
        seen: Counter[str] = Counter()
        own = []
        for observer in sample.observers or (str(i + 1) for i in range(len(sample.maps))):
            seen[observer] += 1
            key = observer, seen[observer]
            if key not in known:
                # Short enough for 255 bytes in any script; folded, since many disks take A and a for one name.
                safe = re.sub(r"[^\w.@-]+", "-", observer).strip("-.")[:50] or "observer"
                free = chain([safe], (f"{safe}-{i}" for i in count(2)))
                known[key] = next(name for name in free if name.casefold() not in taken)
                taken.add(known[key].casefold())
            own.append(known[key])
        named.append(tuple(own))
    return named, {name: observer for (observer, _), name in known.items()}


def _write(sample: Sample, observers: Sequence[str], options: ImportOptions, out: Path) -> _Written:
    try:
        image, rendering = read_image(sample.image, options.window)
        size = image.size
        if sample.crop:
            check_crop(sample.crop, size)
        suffix = write_image(image, sample.image, out / "images" / sample.name, sample.crop)
        del image
        rendered = f"{rendering.modality}; {rendering.voi}; inverted {rendering.inverted}" if rendering else ""
        if not sample.maps:
            return _Written(suffix, rendering=rendered)
        saliency = merge_maps(_draw(sample, size, observers, options, out), options.merge)
        write_map(saliency, options.map_bits, out / "maps" / f"{sample.name}.png")
        return _Written(suffix, not saliency.any(), rendered)
    except DataError as error:
        return _Written(problem=f"{sample.image}: {error}")


def _draw(
    sample: Sample, size: tuple[int, int], observers: Sequence[str], options: ImportOptions, out: Path
) -> Iterator[np.ndarray]:
    """Yield the sample's maps one by one, each written for its observer if ``observers`` are told."""
    for i, maker in enumerate(sample.maps):
        saliency = maker(*size)
        if not np.isfinite(saliency).all() or saliency.min() < 0 or saliency.max() > 1:
            raise DataError("its map has values outside [0, 1]")
        if sample.crop:
            saliency = crop_map(saliency, sample.crop)
        if observers:
            write_map(saliency, options.map_bits, out / BY_OBSERVER / observers[i] / f"{sample.name}.png")
        yield saliency


def _write_manifest(
    path: Path, samples: Sequence[Sample], splits: Sequence[str], written: Sequence[_Written], maps: Sequence[str]
) -> str:
    """Write a manifest with the given maps ("" = none), and return its SHA-256."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for sample, split, one, saliency in zip(samples, splits, written, maps, strict=True):
        image = f"images/{sample.name}{one.suffix}"
        rows.writerow([image, sample.label, split, saliency, sample.type, sample.group, f"{sample.weight:.10g}"])
    content = text.getvalue().encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _versions() -> dict[str, str]:
    from lookhere import __version__

    return {
        "lookhere": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
