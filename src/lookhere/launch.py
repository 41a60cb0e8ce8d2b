"""What ``torchrun`` tells each of the processes that it starts, by environment variables; without it there is one."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started() -> int:
    """Return how many processes were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Is this the one of them that writes files and shows progress?"""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


def place() -> int:
    """Return this process's number among those on the same machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0)
