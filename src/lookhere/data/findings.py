"""What a check finds, and how it goes over the pixels of a data set on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from lookhere.progress import Track

T = TypeVar("T")
BLOCK = 256


class Example(NamedTuple):
    """A row to look at, or two that belong together, and what is wrong there."""

    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Finding:
    """Something about a data set that a person should know."""

    name: str
    severity: Literal["error", "warning", "note"]
    text: str
    """One sentence: what, how many, what to do."""
    examples: tuple[Example, ...] = ()
    """All rows that it is about, the clearest first."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: 1 map, 1,200 maps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_blocks(title: str, count: int, job: Callable[[slice], T]) -> Iterator[T]:
    """Yield what ``job`` makes of each block of ``count`` rows, in order, with progress; blocks run on all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, Track(title, count) as track:
        blocks = [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
        for block, result in zip(blocks, pool.map(job, blocks), strict=True):
            track.advance(block.stop - block.start)
            yield result
