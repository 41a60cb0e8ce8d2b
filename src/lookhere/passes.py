"""Passes of several views through a classifier: whose statistics batch norm uses, and what is kept in memory.

Batch norm is part of the algorithm: views that share a pass are normalised together. What a pass leaves in memory can
be computed again in the backward pass, with the same random numbers and running statistics that are updated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lookhere.backbone import Backbone, Features, Tapped
from lookhere.errors import UsageError

BatchNorm = Literal["per_view", "joint", "clean"]
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every batch norm alone: each pass is normalised by its own batch.

    A batch norm in training mode then writes to tensors that nobody reads; it saves as many for its backward pass as
    it would otherwise, so that a pass may be recomputed with frozen statistics that was not made with them.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    own = [(norm, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm, mean, variance, _ in own:
        if mean is not None and variance is not None:
            norm.running_mean, norm.running_var = torch.empty_like(mean), torch.empty_like(variance)
            norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, mean, variance, count in own:
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, count


def forward_views(backbone: Backbone | Tapped, views: Sequence[Tensor], batch_norm: BatchNorm) -> list[Features]:
    """Pass several views (``b_i c h_i w_i`` each) through a backbone, the first of them the clean one.

    With ``backbone.view_memory = "low"`` most of what a pass leaves in memory is computed again in the backward pass,
    with the same random numbers and the running statistics as they are. Passes of their own are recomputed one after
    the other, so that no two are in memory. Where views share a pass, it is block by block, see ``recomputed_blocks``.

    Args:
        backbone: what to pass them through.
        views: may differ in number of images.
        batch_norm: ``per_view``: a pass for each view, normalised by its own statistics, which it adds to the running
            ones (the paper's words); ``joint``: one pass over all of one size; ``clean``: a pass for each, of which
            only the first adds to the running statistics, so that evaluation sees those of clean images.

    Raises:
        UsageError: ``joint`` with little memory, of a network that is not made of blocks.
    """
    low = backbone.view_memory == "low"
    if batch_norm == "joint":
        with recomputed_blocks(backbone) if low else nullcontext():
            return _joint(backbone, views)
    run = _recomputed(backbone, backbone) if low else backbone
    if batch_norm == "per_view":
        return [run(view) for view in views]
    clean = run(views[0])
    with frozen_statistics(backbone):
        return [clean, *(run(view) for view in views[1:])]


def _joint(backbone: nn.Module, views: Sequence[Tensor]) -> list[Features]:
    found: list[Features] = []
    for _, group in groupby(views, key=lambda view: view.shape[1:]):
        alike = list(group)
        counts = [len(view) for view in alike]
        parts = [None if part is None else part.split(counts) for part in backbone(torch.cat(alike))]
        found += [Features(*(None if part is None else part[i] for part in parts)) for i in range(len(alike))]  # type: ignore[arg-type]
    return found


@contextmanager
def recomputed_blocks(network: nn.Module) -> Iterator[None]:
    """Let a pass keep the inputs of a network's blocks, and compute what is inside them in the backward pass.

    Raises:
        UsageError: the network has none.
    """
    blocks = find_blocks(network)
    if not blocks:
        raise UsageError(
            'training.view_memory: "low" computes a network again block by block where all views share a pass, and '
            'this one is not made of blocks; take "high", or another batch_norm'
        )
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _recomputed(block, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def refusal(backbone: Backbone | Tapped, side: int) -> str:
    """Return what a network says against images of ``side`` x ``side`` pixels, on a line; empty if it takes them."""
    weight, training = next(backbone.parameters()), backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(weight.new_zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        backbone.train(training)
    return ""


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is made of: bottlenecks, dense layers, inverted residuals, transformer blocks.

    A block is an element of a list of modules that holds two layers or more, and no other block.
    """
    found = {
        id(child): child
        for container in network.modules()
        if isinstance(container, CONTAINERS)
        for child in container.children()
        if not isinstance(child, CONTAINERS) and sum(bool(layer._parameters) for layer in child.modules()) > 1
    }
    return [block for block in found.values() if not any(id(m) in found for m in block.modules() if m is not block)]


def _recomputed(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run``, a pass through a module, as one that keeps its input only and is made again when it is needed."""

    def forward(*given: Any, **named: Any) -> Any:
        given = tuple(list(x) if isinstance(x, list) else x for x in given)  # a DenseNet goes on adding to its lists
        again = False

        def one_pass(*given: Any, **named: Any) -> Any:
            nonlocal again
            with frozen_statistics(module) if again else nullcontext():
                again = True
                return run(*given, **named)

        return checkpoint(one_pass, *given, use_reentrant=False, **named)

    return forward
