"""What a network relies on, differentiably, so that a loss can act on it: input gradients and Grad-CAM.

Explanations of a trained model are a matter for the libraries that do only that; none of theirs can be trained through.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lookhere.errors import UsageError

Images = Float[Tensor, "b c h w"]
Maps = Float[Tensor, "b 1 h w"]


def input_gradient(score: Tensor, images: Images) -> Images:
    """Return d score / d images, ``b c h w``, itself differentiable.

    Args:
        score: any shape; summed, so that each image's gradient is that of its own scores (but for batch norm, which in
            training mode couples the images of a batch a little).
        images: what the score was computed from, with ``requires_grad``.
    """
    with torch.autocast(images.device.type, enabled=False):  # each operation backwards in the precision it had forwards
        return torch.autograd.grad(score.sum(), images, create_graph=True)[0]


def twice_differentiable() -> AbstractContextManager[None]:
    """Return a context for the forward pass of a network whose input gradient is trained through.

    Attention is then computed by plain matrix products: the gradient of PyTorch's fused kernels has none of its own.
    """
    return sdpa_kernel(SDPBackend.MATH)


def grad_cam(score: Tensor, feature_map: Tensor) -> Maps:
    """Return Grad-CAM ``b 1 h w`` before its ReLU: the feature map weighted by mean gradients; differentiable.

    Args:
        score: ``b``, the logit of the class to be explained.
        feature_map: ``b c h w``, what the score was computed from.

    Raises:
        UsageError: a network that gives tokens in the place of a feature map.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2.
    """
    if feature_map.ndim != 4:
        raise UsageError(
            "Grad-CAM needs a feature map, and this network gives tokens; take a backbone such as resnet50"
        )
    weights = torch.autograd.grad(score.sum(), feature_map, create_graph=True)[0].mean((2, 3), keepdim=True)
    return (weights * feature_map).sum(1, keepdim=True)


def of_class(scores: Tensor, label: Tensor) -> Tensor:
    """Return each sample's score (or map) of one class: ``b k …`` and labels ``b`` -> ``b …``."""
    return scores[torch.arange(len(label), device=label.device), label]
