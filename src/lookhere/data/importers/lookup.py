"""Finds files by the names that annotation files give them: a path of another machine, a bare name, another suffix.

The trap: live/1.png and attack/1.png share their name, and an annotation of one must not become a map of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from lookhere.data.files import EXTENSIONS
from lookhere.errors import DataError

T = TypeVar("T")
SUFFIXES = (*EXTENSIONS, ".dcm")


class Lookup(Generic[T]):
    """Items by relative path, by any tail of it, and by both without suffix.

    Args:
        items: (relative path with ``/``, item).
    """

    def __init__(self, items: Iterable[tuple[str, T]]) -> None:
        self.exact: dict[str, list[tuple[str, T]]] = defaultdict(list)
        self.bare: dict[str, list[tuple[str, T]]] = defaultdict(list)
        self.claims: dict[str, tuple[str, bool]] = {}
        for path, item in items:
            for tail in _tails(path):
                self.exact[tail].append((path, item))
            for tail in _tails(without_suffix(path)):
                self.bare[tail].append((path, item))

    def find(self, written: str) -> T | None:
        """Return the item whose path shares the longest tail with ``written``, or None.

        Names of files are compared before names without suffix, so that a.png is not taken for a.jpg if both exist.

        Raises:
            DataError: several items share it; or the folders of both paths differ, and another path with that name was
                looked up before. The message names the files.
        """
        name = "/".join(_parts(written.strip().replace("\\", "/")))
        for index, path in ((self.exact, name), (self.bare, name), (self.bare, without_suffix(name))):
            for tail in _tails(path):
                found = index.get(tail, [])
                if len(found) > 1:
                    shown = " and ".join(f"'{other}'" for other, _ in found[:3])
                    raise DataError(f"'{written}' may be {shown}; expected a path that tells them apart")
                if found:
                    self._claim(found[0][0], path, tail)
                    return found[0][1]
        return None

    def _claim(self, file: str, path: str, tail: str) -> None:
        """Refuse to take two files for the same image where one of them lies in another folder than the image."""
        elsewhere = tail not in (path, file, without_suffix(file))
        other, doubtful = self.claims.setdefault(file, (path, elsewhere))
        if other != path and (elsewhere or doubtful):
            raise DataError(f"'{path}' and '{other}' may both be '{file}'; expected paths that tell them apart")


def without_suffix(path: str) -> str:
    """Return a path without the suffix of an image; what follows another dot belongs to the name."""
    suffix = PurePosixPath(path).suffix
    return path[: -len(suffix)] if suffix.lower() in SUFFIXES else path


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return for each path the shortest end of it, without the suffix of a file, that no other path has.

    They tell annotators apart whose files differ in name, or lie in folders that do: ann/export.json, bob/export.json.
    """
    whole = {
        path: path.absolute().parts[1:] if path.is_dir() else path.absolute().with_suffix("").parts[1:]
        for path in paths
    }
    for length in range(1, max(map(len, whole.values()), default=0) + 1):
        names = {path: "/".join(parts[-length:]) for path, parts in whole.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: str(path) for path in whole}


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _tails(path: str) -> Iterator[str]:
    parts = _parts(path)
    return ("/".join(parts[i:]) for i in range(len(parts)))
