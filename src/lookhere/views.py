"""Saliency-based views of a batch (SAGE, section 3.1 and Figure 2).

From an image ``x`` and its saliency map ``s`` come four views: the image itself, one that keeps the salient region and
degrades the rest, one that is degraded everywhere, and one in which only the salient region is degraded::

    degraded  x'  = G(x)
    kept      x~  = s * x + (1 - s) * G(x)
    removed   x~' = (1 - s) * x + s * G(x)

``G`` is a Gaussian blur in the paper; dimming and noise are named there for other architectures; ``swap`` puts another
image of the batch in the blur's place, so that the kept view is the salient region on a stranger's background, and the
removed one the stranger's content on one's own background (``swap.py``).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from lookhere.blur import Images, Maps, effective_sigma, gaussian_blur, varying_blur
from lookhere.options import Options
from lookhere.swap import SwapFrom, swap_region


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
    swap_from: SwapFrom = "any"
    """With ``degrade = "swap"``: of which class the other image of the batch is."""
    respect_partner: bool = True
    """With ``degrade = "swap"``: keep what is salient in the other image out of the kept view."""
    feather: float = Field(2.0, ge=0, le=50)
    """With ``degrade = "swap"``: standard deviation in pixels of the soft edge between region and background."""
    scale: float = Field(1.0, ge=0.25, le=1)
    """Side of the views over that of the image, which is reduced first: a kernel is in pixels of the view."""

    @model_validator(mode="after")
    def _check(self) -> ViewOptions:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even; a blur needs a centre pixel, so take {self.kernel + 1}")
        if self.blend == "sigma" and self.degrade != "blur":
            raise ValueError('blend: "sigma" varies the strength of a blur; with another degrade use "alpha"')
        return self

    def side(self, side: int) -> int:
        """Return the side in pixels of the views of an image with that side."""
        return round(side * self.scale)

    def warn_if_truncated(self) -> None:
        """Warn if the kernel cuts the Gaussian off, which makes its nominal sigma misleading."""
        if self.degrade == "blur" and self.kernel < (full := 2 * math.ceil(2 * self.sigma) + 1):
            effective = effective_sigma(self.kernel, self.sigma)
            warnings.warn(
                f"a blur with kernel {self.kernel} and sigma {self.sigma:g} has an effective standard deviation of "
                f"{effective:.2f} px: the kernel cuts the Gaussian off (sigma {self.sigma:g} needs kernel >= {full})",
                stacklevel=1,  # one place, so that Python shows the warning once
            )


def saliency_views(
    images: Images,
    saliency: Maps,
    options: ViewOptions | None = None,
    *,
    black: Tensor | float = 0.0,
    others: Images | None = None,
    others_saliency: Maps | None = None,
) -> Views:
    """Return the four views of SAGE, section 3.1; where ``options.scale`` is below 1, all four are smaller.

    Args:
        images: ``b c h w`` float, in any affine normalisation (blurring and blending commute with it).
        saliency: ``b 1 h w`` float in [0, 1], 1 = salient.
        options: how the views are made; the paper's blur by default.
        black: with ``degrade = "dim"``, the value of black in the images' normalisation: a number or ``1 c 1 1``.
        others: with ``degrade = "swap"``, the images (``b c h w``) that take the blur's place; by default each image's
            neighbour in the batch, which in a shuffled batch is a random other one.
        others_saliency: with ``others``, their maps (``b 1 h w``), zeros where there is none.

    Raises:
        ValueError: shapes that do not fit, or a kernel larger than the view.
    """
    options = options or ViewOptions()
    options.warn_if_truncated()
    if saliency.shape != (images.shape[0], 1, *images.shape[2:]):
        raise ValueError(
            f"saliency must be b 1 h w beside images b c h w, got {(*saliency.shape,)} and {(*images.shape,)}"
        )
    saliency = saliency.to(images)
    if options.scale < 1:
        images, saliency = _reduced(images, options), _reduced(saliency, options)
        others = others if others is None else _reduced(others, options)
        others_saliency = others_saliency if others_saliency is None else _reduced(others_saliency, options)
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
        if others is None:
            if len(images) == 1:
                raise ValueError('degrade = "swap" needs another image: a batch of two or more, or others=…')
            others, others_saliency = images.roll(1, dims=0), saliency.roll(1, dims=0)
        degraded = others
        saliency = swap_region(saliency, others_saliency if options.respect_partner else None, options.feather)
    return Views(images, torch.lerp(degraded, images, saliency), degraded, torch.lerp(images, degraded, saliency))


def _reduced(x: Tensor, options: ViewOptions) -> Tensor:
    h, w = x.shape[-2:]
    return F.interpolate(x, (options.side(h), options.side(w)), mode="bilinear", antialias=True, align_corners=False)
