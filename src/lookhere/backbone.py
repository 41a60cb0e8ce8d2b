"""A classifier seen from the inside: logits, embedding and feature map, from timm or from any ``nn.Module``.

timm gives all of its models one interface, so no hook and no table of layer names is needed for them. Any other module
is read through a tap: the input of its last linear layer, or the output of a layer named by the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lookhere.errors import UsageError, nearest

BatchNorm = Literal["per_view", "joint", "clean"]
ViewMemory = Literal["high", "low"]
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Features(NamedTuple):
    """What a classifier makes of ``b`` images."""

    logits: Tensor
    """``b k``."""
    embedding: Tensor
    """``b d``: what the last linear layer sees."""
    feature_map: Tensor | None
    """``b c h w``: what the global pooling sees; none for a module read through a tap."""
    pyramid: tuple[Tensor, ...] | None = None
    """``b c_i h_i w_i`` from fine to coarse, as ``Backbone.levels`` tells; none unless asked for."""


class Level(NamedTuple):
    """One level of a backbone's pyramid."""

    channels: int
    reduction: int
    """Side of the image over the side of this level."""


class Backbone(nn.Module):
    """A timm classifier.

    Args:
        model: a timm model whose head is a pooling and one linear layer.
    """

    view_memory: ViewMemory = "high"
    """Keep what several views leave in memory until the backward pass, or compute it again there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
        self.mean: Sequence[float] = config.get("mean", (0.485, 0.456, 0.406))
        self.std: Sequence[float] = config.get("std", (0.229, 0.224, 0.225))
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor, *, pyramid: bool = False) -> Features:
        """Return the features of ``b 3 h w`` images, with the levels of the pyramid if asked for.

        Raises:
            UsageError: a pyramid of a model that has none.
        """
        levels: tuple[Tensor, ...] | None = None
        if pyramid:
            self._require_pyramid()
            inside, found = self.model.forward_intermediates(images)  # levels come as b c h w
            levels = tuple(found)
        else:
            inside = self.model.forward_features(images)
        # The feature map is what the head reads, not a copy beside it: logits have a gradient with respect to it.
        feature_map = inside.permute(0, 3, 1, 2) if self.channels_last else inside
        embedding = self.model.forward_head(
            feature_map.permute(0, 2, 3, 1) if self.channels_last else feature_map, pre_logits=True
        )
        return Features(self.model.get_classifier()(embedding), embedding, feature_map, levels)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the pyramid, from fine to coarse.

        Raises:
            UsageError: the model has no pyramid.
        """
        self._require_pyramid()
        return tuple(Level(info["num_chs"], info["reduction"]) for info in self.model.feature_info)

    def _require_pyramid(self) -> None:
        info = getattr(self.model, "feature_info", None)
        reductions = [level["reduction"] for level in info] if info else []
        if not hasattr(self.model, "forward_intermediates") or reductions != sorted(set(reductions)) or not reductions:
            raise UsageError(
                f"{type(self.model).__name__} has no pyramid of feature maps for a decoder of maps; take a backbone "
                "such as resnet50, densenet121, tf_efficientnet_b7 or swin_tiny_patch4_window7_224"
            )

    def class_activation_map(self, feature_map: Tensor) -> Tensor:
        """Return W . f for every class, ``b c h w`` -> ``b k h w``.

        With average pooling its spatial mean plus the bias equals the logits, on every backbone of the paper.

        Raises:
            UsageError: the classifier is not one linear layer, or there are others between it and the feature map.
        """
        classifier = self.model.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UsageError(
                f"class activation maps need one linear layer as classifier, got {type(classifier).__name__}"
            )
        if classifier.in_features != feature_map.shape[1]:
            raise UsageError(
                f"{type(self.model).__name__} has layers between its pooling and its classifier, so that class "
                "activation maps are not defined; take a backbone such as resnet50"
            )
        return torch.einsum("kc,bchw->bkhw", classifier.weight, feature_map)


class Tapped(nn.Module):
    """Any classifier whose forward pass returns logits, read through a hook that lives for one pass only.

    Args:
        model: maps images to ``b k`` logits.
        tap: name of the module whose output is the embedding (``b d``, or ``b c h w`` and ``b n d``, which are
            averaged); by default the input of the last linear layer, which must give the logits.

    Raises:
        UsageError: no such module, no linear layer, or (at the first pass) one that does not give the logits.
    """

    view_memory: ViewMemory = "high"
    """As in ``Backbone``."""

    def __init__(self, model: nn.Module, tap: str | None = None) -> None:
        super().__init__()
        self.model = model
        modules = dict(model.named_modules())
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        if tap is None and not linear:
            raise UsageError(
                f"{type(model).__name__} has no linear layer to read embeddings from; name a layer with tap=…"
            )
        if tap is not None and tap not in modules:
            raise UsageError(f"tap: {type(model).__name__} has no module '{tap}'{nearest(tap, modules)}")
        self.reads_input = tap is None
        self.tap = linear[-1] if tap is None else tap

    def forward(self, images: Tensor) -> Features:
        """Return the features of ``b c h w`` images, without a feature map."""
        seen: list[tuple[Tensor, Tensor]] = []
        hook = self.model.get_submodule(self.tap).register_forward_hook(
            lambda _, given, out: seen.append((given[0], out))
        )
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        logits = getattr(logits, "logits", logits)  # some models return them beside other things
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UsageError(f"{type(self.model).__name__} must return logits (b k), got {_describe(logits)}")
        if not seen:
            raise UsageError(
                f"'{self.tap}' took no part in the forward pass of {type(self.model).__name__}; name another tap"
            )
        given, out = seen[-1]
        if not self.reads_input:
            return Features(logits, _pool(out), None)
        if out.data_ptr() != logits.data_ptr():
            raise UsageError(
                f"the last linear layer '{self.tap}' does not give the output of {type(self.model).__name__}; "
                "return logits (no softmax), or name the embedding's layer with tap=…"
            )
        return Features(logits, given, None)


def wrap(model: nn.Module, tap: str | None = None) -> Backbone | Tapped:
    """Return a classifier as a backbone: by timm's interface if it has it and no tap is named, else through a tap.

    A compiled model is tapped too: timm's interface would go round the compiled forward pass.
    """
    compiled = hasattr(model, "_orig_mod")
    return Backbone(model) if has_interface(model) and tap is None and not compiled else Tapped(model, tap)


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


def has_interface(model: nn.Module) -> bool:
    """Does the model have timm's interface and one linear layer as classifier, which a few of timm's own lack?"""
    names = ("forward_features", "forward_head", "get_classifier")
    return all(hasattr(model, name) for name in names) and isinstance(model.get_classifier(), nn.Linear)  # type: ignore[operator]


def _pool(out: Tensor) -> Tensor:
    return out.flatten(2).mean(-1) if out.ndim == 4 else out.mean(1) if out.ndim == 3 else out


def _describe(value: object) -> str:
    return f"a tensor of shape {(*value.shape,)}" if isinstance(value, Tensor) else type(value).__name__
