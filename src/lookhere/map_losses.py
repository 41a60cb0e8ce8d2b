"""What methods share that compare a map of the network's with a saliency map: normalisation and losses.

Every loss takes maps of one size, ``b 1 h w``, and returns one value per sample, ``b``, in float32 at least. Maps are
resized by ``resize_map``. Equations are those of ``docs/methods``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lookhere.losses import wide

Maps = Float[Tensor, "b 1 h w"]
PerSample = Float[Tensor, " b"]


def resize_map(saliency: Maps, size: tuple[int, int] | torch.Size) -> Maps:
    """Return saliency maps ``b 1 h w`` at another size (``h``, ``w``), bilinear, averaging where they shrink."""
    if saliency.shape[-2:] == size:
        return saliency
    return F.interpolate(saliency, size=tuple(size), mode="bilinear", antialias=True)


def min_max(maps: Maps, eps: float = 1e-8) -> Maps:
    """Return each map stretched to [0, 1]; a constant one, up to ``eps``, is only shifted to 0: no NaN, no blow-up."""
    maps = wide(maps)
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    spread = high - low
    return (maps - low) / torch.where(spread > eps, spread, torch.ones_like(spread))


def by_maximum(maps: Maps, eps: float = 1e-8) -> Maps:
    """Return each map divided by its maximum; one whose maximum is not above ``eps`` stays as it is."""
    maps = wide(maps)
    high = maps.amax((1, 2, 3), keepdim=True)
    return maps / torch.where(high > eps, high, torch.ones_like(high))


def map_mse(predicted: Maps, saliency: Maps) -> PerSample:
    """Return the mean squared difference of two maps."""
    return (wide(predicted) - wide(saliency)).square().mean((1, 2, 3))


def map_bce(logits: Maps, saliency: Maps) -> PerSample:
    """Return the binary cross-entropy of map logits against saliency in [0, 1], a mean over pixels, in nats."""
    return F.binary_cross_entropy_with_logits(wide(logits), wide(saliency), reduction="none").mean((1, 2, 3))


def map_dice(logits: Maps, saliency: Maps, smooth: float = 1.0) -> PerSample:
    """Return the soft Dice loss 1 - (2 sum p s + smooth) / (sum p + sum s + smooth), with p = sigmoid(logits)."""
    p, s = wide(logits).sigmoid(), wide(saliency)
    total = p.sum((1, 2, 3)) + s.sum((1, 2, 3))
    return 1 - (2 * (p * s).sum((1, 2, 3)) + smooth) / (total + smooth)


def map_energy(attribution: Maps, saliency: Maps, eps: float = 1e-7) -> PerSample:
    """Return the share of the positive attribution that lies outside of the salient region, within [0, 1].

    With a = relu(attribution) this is 1 - sum(a s) / sum(a), whatever the scale of a; where sum(a) is below ``eps``, it
    counts as ``eps``: without any positive attribution the loss is 1 and its gradient zero.
    """
    a = wide(attribution).relu()
    return 1 - (a * wide(saliency)).sum((1, 2, 3)) / a.sum((1, 2, 3)).clamp_min(eps)
