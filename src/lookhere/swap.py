"""Backgrounds exchanged between the images of a batch: who gives to whom, and where the seam runs.

An image's salient region on another image's background shows whether a network relies on the region or on what
surrounds it: ``background-swap`` and SAGE with ``views.degrade = "swap"`` train on such composites, and the reliance of
a trained network is measured on them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lookhere.blur import Images, Maps, gaussian_blur

SwapFrom = Literal["any", "same", "other"]


def draw_partners(label: Tensor, swap_from: SwapFrom = "any") -> Tensor:
    """Draw for each sample of a batch another one, uniformly and from PyTorch's random state.

    Args:
        label: ``b`` int64.
        swap_from: the other sample is of any class, of the same or of another one.

    Returns:
        ``b`` int64, positions in the batch; -1 where the batch has no such sample.
    """
    same = label[:, None] == label[None, :]
    allowed = {"any": torch.ones_like(same), "same": same, "other": ~same}[swap_from]
    allowed = allowed & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    draws = torch.rand(len(label), len(label), device=label.device).masked_fill(~allowed, -1.0)
    return draws.argmax(1).masked_fill(~allowed.any(1), -1)


def swap_region(saliency: Maps, partner: Maps | None = None, feather: float = 0.0) -> Maps:
    """Return the share of each pixel that an image keeps when its salient region goes onto a partner's background.

    Args:
        saliency: ``b 1 h w`` in [0, 1].
        partner: the partners' maps, zeros where there is none. What is salient in either image is kept from the first,
            so that nothing that is salient in the partner is left in the composite.
        feather: standard deviation in pixels of a Gaussian that softens the edge; 0 leaves it as it is.

    Returns:
        ``b 1 h w`` in [0, 1].
    """
    region = saliency if partner is None else torch.maximum(saliency, partner.to(saliency))
    if feather == 0:
        return region
    kernel = min(2 * math.ceil(2 * feather) + 1, 2 * min(region.shape[-2:]) - 1)
    return gaussian_blur(region, kernel, feather, "replicate").clamp(0, 1)  # rounding may leave [0, 1]


def composite(images: Images, backgrounds: Images, region: Maps) -> Images:
    """Return ``region`` of the images on the backgrounds, all ``b c h w`` with a region of ``b 1 h w`` in [0, 1]."""
    return torch.lerp(backgrounds, images, region.to(images))
