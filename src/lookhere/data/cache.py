"""Decodes a data set once, into memory-mapped uint8 files that all later runs share.

A cache folder is named by what its content depends on (the files with their sizes and times, the options of decoding,
the version of this code), so a changed file means another folder. It appears by rename when complete: a reader never
sees half of one, and two processes that build the same do not disturb each other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np
import PIL
from PIL import Image

from lookhere.data.decode import channels, image_pixels, map_pixels, read
from lookhere.data.manifest import DataOptions, Manifest, SaliencyOptions, read_manifest
from lookhere.errors import DataError
from lookhere.progress import Track

VERSION = 2  # of decoding: raise it when the same file gives other pixels
ASPECT_TOLERANCE = 0.02
CHUNK = 256  # files in flight: bounds the memory
UNIFORM = -2
"""Index of a map that is 0.5 everywhere and stands for another; -1 is no map."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A manifest with its decoded pixels, of ``n`` images and ``m`` maps of side ``s``."""

    manifest: Manifest
    images: np.ndarray
    """``n c s s`` uint8, memory-mapped; c = 1 if every image is grey, else 3."""
    maps: np.ndarray
    """``m s s`` uint8, memory-mapped; 255 = salient."""
    map_index: np.ndarray
    """``n`` int64, row of ``maps``; -1 = no map, ``UNIFORM`` = 0.5 everywhere."""
    constant: np.ndarray
    """``m`` bool: does the map have one value throughout? Such a map tells nothing apart and guides nothing."""
    sha256: str
    """Of pixels, maps and all columns: the identity of the data."""
    flipped: bool = False
    """Are the maps reversed when they are read, so that 0 = salient?"""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def guided(self) -> np.ndarray:
        """``n`` bool: which rows have a map that marks some of the image and not the rest, or ``UNIFORM``."""
        guiding = np.append(~self.constant, [True, False])  # UNIFORM and no map, whose indices are -2 and -1
        return np.asarray(guiding[self.map_index])

    def rows(self, split: str, *, guided: bool = False) -> np.ndarray:
        """Return the row numbers (int64) of a split, or of those among them whose map guides."""
        rows = self.manifest.rows(split)
        return rows[self.guided[rows]] if guided else rows


class _Decoded(NamedTuple):
    pixels: np.ndarray | None
    saliency: np.ndarray | None
    constant: bool
    problems: list[str]


def load_dataset(data: DataOptions, saliency: SaliencyOptions, manifest: Manifest | None = None) -> Dataset:
    """Return the decoded data set, from the cache if it is there.

    Args:
        data: where the images are; ``size``, ``bit_depth`` and ``cache`` matter here.
        saliency: how maps are normalised.
        manifest: as read before with the same options; by default it is read for training.

    Raises:
        DataError: all files that cannot be decoded, or whose map has another aspect ratio; no space for the cache.
    """
    manifest = manifest or read_manifest(data, saliency)
    folder = _home(data) / _key(data, saliency, manifest)
    found = _opened(folder)
    if found is None:
        _build(folder, data, saliency, manifest)
        found = _opened(folder)
    if found is None:
        raise DataError(f"{folder}: the cache cannot be read back; delete it, or set data.cache to another folder")
    meta, images, maps = found
    map_index = _map_index(manifest)
    digest = hashlib.sha256(meta["sha256"].encode())
    lists = [manifest.classes, manifest.image, manifest.type, manifest.group]
    arrays = [manifest.label, manifest.split, manifest.weight, map_index]
    digest.update(json.dumps([*lists, *(array.tolist() for array in arrays)]).encode())
    constant = np.zeros(len(maps), bool)
    constant[meta["constant"]] = True
    return Dataset(manifest, images, maps, map_index, constant, digest.hexdigest())


def decode_problems(data: DataOptions, saliency: SaliencyOptions, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files of a manifest, those left blank aside, without keeping any pixels."""
    return [problem for one in _decoded(data, saliency, manifest) for problem in one.problems]


def _home(data: DataOptions) -> Path:
    return data.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lookhere"


def _key(data: DataOptions, saliency: SaliencyOptions, manifest: Manifest) -> str:
    pixels = [data.size, data.bit_depth, saliency.normalise, saliency.colour_map]
    options = [VERSION, PIL.__version__, os.path.realpath(manifest.root), *pixels]
    digest = hashlib.sha256(json.dumps(options).encode())
    root = str(manifest.root)
    for file in filter(None, [*manifest.image_file, *manifest.saliency]):
        try:
            info = os.stat(os.path.join(root, file))
        except OSError:  # vanished since the manifest was read: reported when it is decoded
            continue
        digest.update(f"{file}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    digest.update(json.dumps(_map_index(manifest).tolist()).encode())
    return digest.hexdigest()[:32]


def _map_index(manifest: Manifest) -> np.ndarray:
    order: dict[str, int] = {}
    return np.array([order.setdefault(file, len(order)) if file else -1 for file in manifest.saliency], np.int64)


def _opened(folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray] | None:
    """Return a cache's description, images and maps, or None if it is absent or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any((folder / name).stat().st_size != size for name, size in meta["bytes"].items()):
            return None
        images, maps = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in meta["bytes"])
    except (OSError, ValueError, KeyError):
        return None
    return meta, images, maps


def _build(folder: Path, data: DataOptions, saliency: SaliencyOptions, manifest: Manifest) -> None:
    home = folder.parent
    part = home / f"{folder.name}.{uuid4().hex}.part"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        part.mkdir()
        _write(part, data, saliency, manifest)
        _publish(part, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(home).free / 1e9
            need = len(manifest) * 3 * data.size**2 / 1e9
            reason = f"disk full: up to {need:.1f} GB are needed for the decoded images, {free:.1f} GB are free"
        else:
            reason = f"the cache cannot be written ({error.strerror})"
        raise DataError(f"{home}: {reason}; set data.cache to another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, folder: Path) -> None:
    """Rename a complete build, unless another process has been faster; a damaged cache makes way."""
    if folder.exists() and _opened(folder) is None:
        damaged = part.with_suffix(".part.damaged")
        with suppress(FileNotFoundError):
            folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        part.rename(folder)
    except OSError:
        if _opened(folder) is None:
            raise


def _sweep(home: Path) -> None:
    """Delete what builds that were killed more than a day ago have left."""
    for left in home.glob("*.part*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)


def _write(part: Path, data: DataOptions, saliency: SaliencyOptions, manifest: Manifest) -> None:
    """Decode everything into ``part``; files are written in order, so a full disk is an error and not a crash."""
    map_index = _map_index(manifest)
    count = int(map_index.max(initial=-1)) + 1
    side = data.size
    digest = hashlib.sha256()
    problems: list[str] = []
    constant: list[int] = []
    written = 0
    with _decoders() as pool:
        grey = all(width == 1 for width in _in_order(pool, lambda row: _channels(manifest, row), len(manifest)))
    shape = (len(manifest), 1 if grey else 3, side, side)
    with (
        open(part / "images.npy", "wb") as images,
        open(part / "maps.npy", "wb") as maps,
        closing(_decoded(data, saliency, manifest)) as decoded,  # its threads end with it, on a full disk too
    ):
        _header(images, shape)
        _header(maps, (count, side, side))
        for row, one in enumerate(decoded):
            problems += one.problems
            if problems or one.pixels is None:
                continue
            pixels = np.ascontiguousarray(np.broadcast_to(one.pixels, shape[1:])).data
            images.write(pixels)
            digest.update(pixels)
            if one.saliency is not None and map_index[row] == written:
                maps.write(one.saliency.data)
                digest.update(one.saliency.data)
                constant += [written] * one.constant
                written += 1
    if problems:
        raise DataError(problems)
    sizes = {name: (part / name).stat().st_size for name in ("images.npy", "maps.npy")}
    meta = {"bytes": sizes, "constant": constant, "sha256": digest.hexdigest(), "root": str(manifest.root)}
    (part / "meta.json").write_text(json.dumps(meta, indent=1))


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


@contextmanager
def _decoders() -> Iterator[ThreadPoolExecutor]:
    """Yield threads for decoding, in which an image that Pillow would warn of as too large is an error."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


def _decoded(data: DataOptions, saliency: SaliencyOptions, manifest: Manifest) -> Generator[_Decoded]:
    """Yield each row of a manifest decoded, in order and with progress."""
    with _decoders() as pool, Track("decoding images", len(manifest)) as track:
        for one in _in_order(pool, lambda row: _decode(data, saliency, manifest, row), len(manifest)):
            track.advance()
            yield one


def _in_order(pool: ThreadPoolExecutor, job: Callable[[int], T], count: int) -> Iterator[T]:
    for start in range(0, count, CHUNK):
        yield from pool.map(job, range(start, min(start + CHUNK, count)))


def _channels(manifest: Manifest, row: int) -> int:
    try:
        return channels(manifest.image_path(row))
    except DataError:  # told when it is decoded
        return 1


def _decode(data: DataOptions, saliency: SaliencyOptions, manifest: Manifest, row: int) -> _Decoded:
    pixels = drawn = image = None
    constant = False
    problems = []
    try:
        if manifest.image_file[row]:
            image = read(manifest.image_path(row), data.bit_depth)
            pixels = image_pixels(image, data.size, data.bit_depth)
    except DataError as error:
        problems.append(f"{manifest.where(row, 'image')}: '{manifest.image_file[row]}': {error}")
    path = manifest.saliency_path(row)
    if path:
        place = f"{manifest.where(row, 'saliency')}: '{manifest.saliency[row]}'"
        try:
            mask = read(path)
            drawn, state = map_pixels(mask, data.size, saliency.normalise, saliency.colour_map)
            constant = state == "constant"
            if image and not _same_aspect(image.size, mask.size):
                problems.append(
                    f"{place}: {mask.width} x {mask.height}, but the image '{manifest.image_file[row]}' is "
                    f"{image.width} x {image.height}; expected the same aspect ratio"
                )
        except DataError as error:
            problems.append(f"{place}: {error}")
    return _Decoded(pixels, drawn, constant, problems)


def _same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Do two sizes have the same aspect ratio, as far as whole pixels can tell?"""
    crossed = one[0] * other[1], one[1] * other[0]
    rounding = max(*one, *other) / 2 + 0.5
    return abs(crossed[0] - crossed[1]) <= max(ASPECT_TOLERANCE * max(crossed), rounding)
