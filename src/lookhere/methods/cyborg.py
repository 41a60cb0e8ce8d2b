"""CYBORG: the class activation map should be where people look (Boyd, Tinsley, Bowyer & Czajka, WACV 2023).

With ``f`` the feature map that the classifier pools, ``W`` its weights and ``c`` a class (arXiv 2112.00686)::

    CAM(i, j) = sum_k W[c, k] * f[k, i, j]
    L = alpha * CE + (1 - alpha) * MSE(min_max(CAM), min_max(s at the map's size))

VISER (Dowling et al., arXiv 2603.17859) is this loss with ``alpha = CE / (CE + MSE + 1e-8)``, anew for every batch.

The class is the predicted one, as in the released code and in SAGE's account of it (section 5.2); later work of the
same group takes the true one. The gradient flows through W too, and the bias is left out, as released.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from lookhere.attribution import of_class
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.map_losses import map_mse, min_max, resize_map
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean, require_backbone


class CyborgOptions(MethodOptions):
    """Options of CYBORG."""

    name: Literal["cyborg"] = "cyborg"
    """The method."""
    alpha: Literal["dynamic"] | Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of cross-entropy in the loss, or VISER's: cross-entropy's share in the sum of both terms of the batch."""
    detach_alpha: bool = False
    """Send no gradient through a dynamic alpha; VISER's code does, which makes the loss (CE^2 + MSE^2) / (CE + MSE)."""
    cam_class: Literal["predicted", "true"] = "predicted"
    """The class whose activation map is compared with the saliency map."""
    variant: Literal["paper", "released"] = "paper"
    """The map that the classifier pools, or the one that the released code reads: before the last batch norm and
    activation (ResNet, EfficientNet), or before the last activation (DenseNet)."""


class Cyborg(Method):
    """CYBORG under the contract of a method. Samples without a map add cross-entropy only."""

    name = "cyborg"
    paper = "Boyd, Tinsley, Bowyer & Czajka, 2023"
    guides = "map"
    Options = CyborgOptions
    backbone: Backbone
    options: CyborgOptions

    def __init__(self, backbone: Backbone | Tapped, options: CyborgOptions) -> None:
        super().__init__(require_backbone(backbone, type(self)), options)
        if options.variant == "released":
            _released_reader(self.backbone.model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy``, ``map_mse`` and, where it is dynamic, ``alpha``."""
        o = self.options
        if o.variant == "paper":
            logits, _, source, _ = self.backbone(batch.image)
        else:
            with _input_of(_released_reader(self.backbone.model)) as seen:
                logits = self.backbone(batch.image).logits
            source = seen[-1]
        explained = batch.label if o.cam_class == "true" else logits.argmax(1)
        cam = of_class(self.backbone.class_activation_map(source), explained)[:, None]
        target = resize_map(batch.saliency, cam.shape[-2:])
        ce = batch_mean(cross_entropy(logits, batch.label), batch)
        mse = guided_mean(map_mse(min_max(cam), min_max(target)), batch)
        parts = {"cross_entropy": ce, "map_mse": mse}
        if o.alpha == "dynamic":
            alpha = ce / (ce + mse + 1e-8)
            parts["alpha"] = alpha
            alpha = alpha.detach() if o.detach_alpha else alpha
            return {"total": alpha * ce + (1 - alpha) * mse, **parts}
        return {"total": o.alpha * ce + (1 - o.alpha) * mse, **parts}


def _released_reader(model: Any) -> nn.Module:
    """Return the module whose input is the tensor of which the released code makes its class activation map.

    Raises:
        UsageError: a network that the released code does not know.
    """
    match type(model).__name__:
        case "ResNet":
            block = model.layer4[-1]
            return block.bn3 if hasattr(block, "bn3") else block.bn2
        case "DenseNet":
            return model.features.norm5.act
        case "EfficientNet":
            return model.bn2
        case other:
            raise UsageError(
                f'cyborg with variant = "released" is for ResNet, DenseNet and EfficientNet, not {other}; '
                'take variant = "paper"'
            )


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module is given; copies, because an activation may work in place."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()
