"""The processes that share one training: where they meet, and what they tell each other.

Everything here is about the processes that have joined (``joined``), and does nothing outside of that: a loss in a
training loop of one's own never waits for anybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lookhere import launch
from lookhere.errors import TrainingError, UsageError

STEP = timedelta(minutes=10)
"""The longest that processes wait for each other within a step, before the training ends with an error."""
WORK = timedelta(days=7)
"""The same where one of them may be at work alone: decoding images, writing a checkpoint."""
LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "pair closure", "Connection refused")
"""What Gloo says of a process that has gone, which it raises as a bare RuntimeError."""

T = TypeVar("T")
_group: Any = None  # those who have joined, by way of the network: GPUs are left to the steps


def count() -> int:
    """Return how many processes have joined; 1 outside of ``joined``."""
    return 1 if _group is None else dist.get_world_size()


def rank() -> int:
    """Return this process's number among them, from 0."""
    return 0 if _group is None else dist.get_rank()


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that were started with this one; where there is no other, do nothing.

    Args:
        device: what this process trains on.

    Raises:
        UsageError: some of what ``torchrun`` tells each process is missing.
        TrainingError: another process has ended, or does not answer any more.
    """
    global _group
    missing = [name for name in launch.VARIABLES if name not in os.environ]
    if missing and launch.started() > 1:
        raise UsageError(f"WORLD_SIZE is {launch.started()}, but {', '.join(missing)} is not set; start with torchrun")
    if missing:
        yield
        return
    mine = not dist.is_initialized()
    try:
        if mine:
            dist.init_process_group(dist.get_default_backend_for_device(device), timeout=STEP)
        _group = dist.new_group(backend="gloo", timeout=WORK)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(text in str(error) for text in LOST):
            raise TrainingError(
                "another process of this training has ended, or does not answer any more; where it could, it has said "
                "why. A training that had begun continues with --resume"
            ) from error
        raise
    else:
        if mine:  # not after an error: it would wait for those that have none
            dist.destroy_process_group()
    finally:
        _group = None


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the first process of each machine go first; the others then find what it has fetched and decoded."""
    late = count() > 1 and launch.place() > 0
    if late:
        wait()
    yield
    if not late:
        wait()


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier(_group)


def told(value: T) -> T:
    """Return on every process what the first one gives."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def merged(part: Mapping[int, T]) -> dict[int, T]:
    """Return on every process the parts of all, as one."""
    parts: list[Any] = [part]
    if count() > 1:
        parts *= count()
        dist.all_gather_object(parts, part, group=_group)
    return {key: value for one in parts for key, value in one.items()}


def total(value: Tensor) -> Tensor:
    """Return on every process the sum of a tensor over all, which sends its gradient back to each one's share."""
    return value if count() == 1 else _Sum.apply(value)


def copy(value: Tensor) -> None:
    """Give a tensor on every process the values that it has on the first one."""
    if count() > 1:
        dist.broadcast(value, src=0)


def mean(values: Tensor) -> Tensor:
    """Return on every process the mean over the elements of all, some of which may have none: a scalar."""
    if count() == 1:
        return values.mean()
    sums = total(torch.stack([values.sum(), values.new_tensor(values.numel())]))
    return sums[0] / sums[1].clamp_min(1)


class _Sum(torch.autograd.Function):
    """The loss of every process depends on every share: the gradient of a share is a sum over processes as well."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(value: Tensor) -> Tensor:
    value = value.clone()
    dist.all_reduce(value)
    return value
