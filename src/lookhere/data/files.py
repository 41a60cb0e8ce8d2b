"""Which files of a manifest exist, from one listing of each folder, so that a million rows stay fast."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from lookhere.data.table import Table

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FILE, FOLDER, LINK = range(3)


class _Folder:
    """The names in one folder with their kinds; ``error`` tells why it could not be listed."""

    def __init__(self, path: str) -> None:
        self.kinds: dict[str, int] = {}
        self.error = ""
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    self.kinds[entry.name] = LINK if entry.is_symlink() else FOLDER if entry.is_dir() else FILE
        except OSError as error:
            self.error = error.strerror or str(error)

    @cached_property
    def folded(self) -> dict[str, str]:
        return {name.casefold(): name for name in self.kinds}


class Files:
    """Files below ``root``, named by their paths relative to it.

    Args:
        root: folder that the paths are relative to.
        allow_outside: accept paths that leave the root by ``..``, as an absolute path or through a symbolic link.
    """

    def __init__(self, root: Path, allow_outside: bool = False) -> None:
        self.root, self.allow_outside = root, allow_outside
        self.real = os.path.realpath(root)
        self.folders: dict[str, _Folder | None] = {}

    def problem(self, file: str) -> str | None:
        """Return why ``file`` (cleaned, with ``/``) cannot be used, or None if it is a file."""
        name = posixpath.basename(file)
        folder = self._folder(posixpath.dirname(file))
        if folder is None:
            return self._outside(file)
        kind = folder.kinds.get(name)
        if kind == FILE:
            return None
        if kind == LINK:
            target = os.path.realpath(self.root / file)
            if not self._is_inside(target):
                return self._outside(file)
            kind = FILE if os.path.isfile(target) else FOLDER if os.path.isdir(target) else None
        if kind == FILE:
            return None
        if kind == FOLDER:
            return f"'{file}' is a folder; expected an image file"
        reason = f" ({folder.error})" if folder.error not in ("", os.strerror(2)) else ""
        return f"'{file}' not found in {self.root}{reason}{self._other_case(file)}"

    def _folder(self, name: str) -> _Folder | None:
        """Return the listing of a folder, or None if it lies outside the root."""
        if name not in self.folders:
            path = self.root / name
            self.folders[name] = _Folder(str(path)) if self._is_inside(os.path.realpath(path)) else None
        return self.folders[name]

    def _is_inside(self, real: str) -> bool:
        return self.allow_outside or os.path.commonpath([self.real, real]) == self.real

    def _outside(self, file: str) -> str:
        return f"'{file}' leaves the root {self.root}; expected a path below it (or set data.root, data.allow_outside)"

    def _other_case(self, file: str) -> str:
        found = ""
        for part in file.split("/"):
            folder = self._folder(found)
            match = part if folder and part in folder.kinds else folder and folder.folded.get(part.casefold())
            if not match:
                return ""
            found = posixpath.join(found, match)
        return f"; did you mean '{found}'?"


def clean(path: str, strip_root: bool = False) -> str:
    """Return a path as written in a manifest with ``/`` and without ``.``; an empty one stays empty.

    Args:
        path: as written, possibly with backslashes.
        strip_root: take ``/a`` for ``a``: lists of the field are made to be appended to a root as text.
    """
    if not path:
        return ""
    tidy = path.replace("\\", "/")
    tidy = posixpath.normpath(tidy.lstrip("/") if strip_root else tidy)
    return path if tidy == path else tidy


def maps_by_name(folder: Path, suffix: str, images: list[str], training: bool, table: Table) -> list[str]:
    """Return each image's map in a flat folder, by its name followed by ``suffix`` with any extension; "" = none."""
    by_name: dict[str, list[str]] = defaultdict(list)
    try:
        for name in sorted(os.listdir(folder)):
            stem, extension = os.path.splitext(name)
            if extension.lower() in EXTENSIONS:
                by_name[stem].append(name)
    except OSError as error:
        table.overall(f"saliency.folder {folder}: cannot be listed ({error.strerror}); expected a folder of maps")
        return [""] * len(images)
    place = os.path.abspath(folder)
    owner: dict[str, int] = {}
    maps: list[str] = []
    for i, image in enumerate(images):
        stem = posixpath.splitext(posixpath.basename(image))[0] + suffix
        found = by_name.get(stem, [])
        maps.append(f"{place}/{found[0]}" if found else "")
        if len(found) > 1:
            table.at(i, "image", f"'{image}' has {len(found)} maps in {folder}: {', '.join(found)}; expected one")
        other = owner.setdefault(stem, i) if found else i
        if images[other] != image:
            both = f"'{image}' and '{images[other]}' (row {table.line[other]})"
            table.at(i, "image", f"{both} share the map {found[0]} in {folder}; expected one each")
    if training and not any(maps):
        what = f"no file in {folder} has the name of an image followed by '{suffix}'"
        table.overall(f"{what}; check saliency.folder and saliency.suffix")
    return maps
