"""Saliency-based views of a batch (SAGE, section 3.1 and Figure 2).

From an image ``x`` and its saliency map ``s`` come four views: the image itself, one that keeps the salient region and
degrades the rest, one that is degraded everywhere, and one in which only the salient region is degraded::

    degraded  x'  = G(x)
    kept      x~  = s * x + (1 - s) * G(x)
    removed   x~' = (1 - s) * x + s * G(x)

``G`` is a Gaussian blur in the paper; dimming and noise are named there for other architectures; ``swap`` puts another
image of the batch in the blur's place.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from lookhere.options import Options

Images = Float[Tensor, "b c h w"]
Maps = Float[Tensor, "b 1 h w"]


class Views(NamedTuple):
    """The four views of a batch, or what a network makes of them, in the order in which they are passed through it."""

    clean: Tensor
    """``x``: as it is."""
    kept: Tensor
    """``x~``: the salient region kept, the rest degraded."""
    degraded: Tensor
    """``x'``: degraded everywhere."""
    removed: Tensor
    """``x~'``: the salient region degraded, the rest kept."""


class ViewOptions(Options):
    """How the views are made."""

    degrade: Literal["blur", "dim", "noise", "swap"] = "blur"
    """What takes the image's place: its blur, its dimmed or noisy self, or another image of the batch."""
    kernel: int = Field(7, ge=3, le=255)
    """Side of the blur's kernel in pixels, odd (the paper's K)."""
    sigma: float = Field(10.0, gt=0, le=200)
    """Standard deviation of the blur in pixels, before the kernel truncates it."""
    blend: Literal["alpha", "sigma"] = "alpha"
    """How a soft map sets the blur's strength: mix image and blur by the map, or vary the blur's sigma with it."""
    padding: Literal["reflect", "replicate"] = "reflect"
    """How the blur continues the image past its border."""
    dim: float = Field(0.75, gt=0, le=1)
    """With ``degrade = "dim"``: the share of brightness taken away."""
    noise: float = Field(1.0, gt=0, le=10)
    """With ``degrade = "noise"``: standard deviation of the added noise, in units of the normalised image."""

    @model_validator(mode="after")
    def _check(self) -> ViewOptions:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even; a blur needs a centre pixel, so take {self.kernel + 1}")
        if self.blend == "sigma" and self.degrade != "blur":
            raise ValueError('blend: "sigma" varies the strength of a blur; with another degrade use "alpha"')
        return self

    def warn_if_truncated(self) -> None:
        """Warn if the kernel cuts the Gaussian off, which makes its nominal sigma misleading."""
        if self.degrade == "blur" and self.kernel < (full := 2 * math.ceil(2 * self.sigma) + 1):
            effective = effective_sigma(self.kernel, self.sigma)
            warnings.warn(
                f"a blur with kernel {self.kernel} and sigma {self.sigma:g} has an effective standard deviation of "
                f"{effective:.2f} px: the kernel cuts the Gaussian off (sigma {self.sigma:g} needs kernel >= {full})",
                stacklevel=1,  # one place, so that Python shows the warning once
            )


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


def saliency_views(
    images: Images,
    saliency: Maps,
    options: ViewOptions | None = None,
    *,
    black: Tensor | float = 0.0,
    others: Images | None = None,
) -> Views:
    """Return the four views of SAGE, section 3.1.

    Args:
        images: ``b c h w`` float, in any affine normalisation (blurring and blending commute with it).
        saliency: ``b 1 h w`` float in [0, 1], 1 = salient.
        options: how the views are made; the paper's blur by default.
        black: with ``degrade = "dim"``, the value of black in the images' normalisation: a number or ``1 c 1 1``.
        others: with ``degrade = "swap"``, the images (``b c h w``) that take the blur's place; by default each image's
            neighbour in the batch, which in a shuffled batch is a random other one.

    Raises:
        ValueError: shapes that do not fit, or a kernel larger than the image.
    """
    options = options or ViewOptions()
    options.warn_if_truncated()
    if saliency.shape != (images.shape[0], 1, *images.shape[2:]):
        raise ValueError(
            f"saliency must be b 1 h w beside images b c h w, got {(*saliency.shape,)} and {(*images.shape,)}"
        )
    saliency = saliency.to(images)
    if options.blend == "sigma":
        blur = lambda strength: varying_blur(images, options.sigma * strength, options.kernel, options.padding)  # noqa: E731
        degraded = gaussian_blur(images, options.kernel, options.sigma, options.padding)
        return Views(images, blur(1 - saliency), degraded, blur(saliency))
    if options.degrade == "blur":
        degraded = gaussian_blur(images, options.kernel, options.sigma, options.padding)
    elif options.degrade == "dim":
        degraded = images + options.dim * (black - images)
    elif options.degrade == "noise":
        degraded = images + options.noise * torch.randn_like(images)
    else:
        if others is None and len(images) == 1:
            raise ValueError('degrade = "swap" needs another image: a batch of two or more, or others=…')
        degraded = images.roll(1, dims=0) if others is None else others
    return Views(images, torch.lerp(degraded, images, saliency), degraded, torch.lerp(images, degraded, saliency))


def _check_reach(images: Tensor, reach: int) -> None:
    if reach >= min(images.shape[-2:]):
        h, w = images.shape[-2:]
        raise ValueError(
            f"a blur with kernel {2 * reach + 1} does not fit an image of {h} x {w} pixels; take a smaller one"
        )
