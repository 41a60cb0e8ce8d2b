"""Gaussian blurs of a batch of images, and what a kernel that is too small leaves of them."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b c h w"]
Maps = Float[Tensor, "b 1 h w"]


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Return the ``size`` weights of a Gaussian with standard deviation ``sigma`` (pixels), float64, summing to 1."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.softmax(-0.5 * (offset / sigma) ** 2, dim=0)


@cache
def effective_sigma(size: int, sigma: float) -> float:
    """Return the standard deviation in pixels of the Gaussian that is left after truncation to ``size`` taps."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return math.sqrt(float((gaussian_kernel(size, sigma) * offset**2).sum()))


def gaussian_blur(images: Images, kernel: int = 7, sigma: float = 10.0, padding: str = "reflect") -> Images:
    """Blur ``b c h w`` images with a ``kernel x kernel`` Gaussian, as two passes of one dimension.

    Raises:
        ValueError: the kernel reaches further than the image is large.
    """
    channels, reach = images.shape[1], kernel // 2
    _check_reach(images, reach)
    weights = gaussian_kernel(kernel, sigma).to(images).expand(channels, 1, kernel)
    padded = F.pad(images, (reach, reach, reach, reach), mode=padding)
    with torch.autocast(images.device.type, enabled=False):  # an image keeps its precision in mixed-precision training
        rows = F.conv2d(padded, weights[..., None], groups=channels)
        return F.conv2d(rows, weights[:, :, None], groups=channels)


def blur_each(images: Images, sigma: Float[Tensor, " b"]) -> Images:
    """Blur each of ``b c h w`` images with a Gaussian of its own standard deviation ``sigma`` (``b``, pixels).

    The Gaussian is not truncated, and at the border it is renormalised over the pixels that are there. A sigma of 0
    leaves an image as it is. A blur is a matrix product per dimension, so all samples go at once, whatever their sigma.
    """
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = (_blur_matrices(side, sigma).to(images)[:, None] for side in images.shape[-2:])
        return rows @ images @ columns.mT


def _blur_matrices(side: int, sigma: Tensor) -> Tensor:
    """Return for each sigma (``b``) the matrix ``b side side`` that blurs one dimension, rows summing to 1."""
    position = torch.arange(side, device=sigma.device)
    offset = (position[:, None] - position) / sigma.clamp_min(1e-3).view(-1, 1, 1)
    return torch.softmax(-0.5 * offset**2, dim=-1)


def varying_blur(images: Images, sigma: Maps, kernel: int = 7, padding: str = "reflect") -> Images:
    """Blur ``b c h w`` images with a Gaussian whose standard deviation ``sigma`` (``b 1 h w``, pixels) varies by pixel.

    A varying Gaussian is not separable, so this costs ``kernel**2`` passes over the image: meant for small kernels.

    Raises:
        ValueError: the kernel reaches further than the image is large.
    """
    reach = kernel // 2
    _check_reach(images, reach)
    h, w = images.shape[-2:]
    padded = F.pad(images, (reach, reach, reach, reach), mode=padding)
    sigma = (
        sigma.float() if sigma.element_size() < 4 else sigma
    )  # the weights of a small sigma overflow in half precision
    falloff = -0.5 / sigma.clamp_min(1e-3) ** 2
    total, weights = torch.zeros_like(images, dtype=sigma.dtype), torch.zeros_like(sigma)
    for dy in range(kernel):
        for dx in range(kernel):
            weight = torch.exp(falloff * ((dy - reach) ** 2 + (dx - reach) ** 2))
            total = total + weight * padded[..., dy : dy + h, dx : dx + w]
            weights = weights + weight
    return (total / weights).to(images)


def _check_reach(images: Tensor, reach: int) -> None:
    if reach >= min(images.shape[-2:]):
        h, w = images.shape[-2:]
        raise ValueError(
            f"a blur with kernel {2 * reach + 1} does not fit an image of {h} x {w} pixels; take a smaller one"
        )
