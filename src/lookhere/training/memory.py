"""How the C library treats memory that a CPU training frees: kept for the next step.

glibc returns every freed block above 32 MiB to the system, and takes it back, page by page and filled with zeros, for
the next step's tensor of the same size. Feature maps of four views in one pass are of that kind: where a step of
cross-entropy mostly stays below the limit, a step of SAGE spent up to half of its time in the system.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

# From glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
NEVER = -1
OWN_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user says how memory is kept."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether it does.

    Blocks of any size then come from one heap that never shrinks by itself, which was up to a third larger than what a
    process held at most before (docs/performance.md). Nothing changes where the C library is another, or a variable of
    ``OWN_SETTINGS`` is set.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in OWN_SETTINGS):
        return False
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, NEVER))


def release_memory() -> None:
    """Return the memory that this process does not use to the system."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
