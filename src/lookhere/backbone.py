"""A classifier seen from the inside: logits, embedding and feature map, from timm or from any ``nn.Module``.

timm gives all of its models one interface, so no hook and no table of layer names is needed for them. Any other module
is read through a tap: the input of its last linear layer, or the output of a layer named by the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lookhere.errors import UsageError, nearest

ViewMemory = Literal["high", "low"]


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


def has_interface(model: nn.Module) -> bool:
    """Does the model have timm's interface and one linear layer as classifier, which a few of timm's own lack?"""
    names = ("forward_features", "forward_head", "get_classifier")
    return all(hasattr(model, name) for name in names) and isinstance(model.get_classifier(), nn.Linear)  # type: ignore[operator]


def _pool(out: Tensor) -> Tensor:
    return out.flatten(2).mean(-1) if out.ndim == 4 else out.mean(1) if out.ndim == 3 else out


def _describe(value: object) -> str:
    return f"a tensor of shape {(*value.shape,)}" if isinstance(value, Tensor) else type(value).__name__
