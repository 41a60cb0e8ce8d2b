"""What a network is shown to measure its reliance on the salient region: an image altered in one way after another.

Every composite keeps what is salient whole: a map becomes a region by a threshold, the region is grown by the reach of
the blur that softens its edge, and a composite of two images keeps what is salient in either from the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lookhere.batch import Batch
from lookhere.blur import Images, Maps, gaussian_blur
from lookhere.options import Options
from lookhere.swap import composite, swap_region

CONDITIONS: dict[str, str] = {
    "whole": "the image as it is",
    "salient_only": "the salient region, the rest blurred wide",
    "salient_blurred": "the image with its salient region blurred wide",
    "salient_noise": "the image with noise in place of its salient region",
    "background_same": "the salient region on the background of another image of its class",
    "background_opposite": "the salient region on the background of an image of another class",
    "control": "the salient region on the image's own background, moved: what the pasting itself costs",
}
"""What the network is shown, in a line each."""
EFFECT = "background_effect"
"""The AUROC on backgrounds of the same class minus that on backgrounds of another one, equally pasted."""


class RelianceOptions(Options):
    """How composites are made. Lengths are shares of the image's side, so that sizes compare."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Of the pairs, the lent maps, the noise and the bootstrap."""
    threshold: float = Field(0.25, ge=0, lt=1)
    """What is salient: pixels whose map is above this. At 0.25, a Gaussian fixation counts with 75 % of its mass."""
    feather: float = Field(0.01, ge=0, le=0.1)
    """Standard deviation of the soft edge around a region; the region is grown first, so that the edge lies outside."""
    blur: float = Field(0.08, gt=0, le=0.4)
    """Standard deviation of the wide blur."""
    shift: float = Field(0.125, ge=0, le=0.5)
    """How far the control's background is moved, down or up and left or right. Without (0), the control is the image
    itself."""
    unmapped: Literal["borrow", "leave_out"] = "borrow"
    """Images of a class of which no image has a map: each is lent the map of an image that has one, or they are left
    out, which leaves no AUROC between such a class and the others."""


def salient_level(options: RelianceOptions) -> float:
    """Return the threshold in steps of a map's 255, between two of them, where rounding decides nothing."""
    return math.floor(options.threshold * 255) + 0.5


def salient_region(saliency: Maps, options: RelianceOptions, partner: Maps | None = None) -> Maps:
    """Return the share of each pixel that belongs to the salient region, or to either of two, ``b 1 h w`` in [0, 1].

    It is 1 wherever a map is above the threshold, and falls to 0 outside.
    """
    sigma = options.feather * saliency.shape[-1]
    reach = math.ceil(2 * sigma)  # of the edge's blur (`swap_region`)

    def grown(maps: Maps) -> Maps:
        salient = (maps * 255 > salient_level(options)).to(maps)
        return F.max_pool2d(salient, 2 * reach + 1, stride=1, padding=reach)

    return swap_region(grown(saliency), None if partner is None else grown(partner), sigma)


def shifted(images: Images, offset: Tensor) -> Images:
    """Return images ``b c h w`` moved by ``offset`` (``b 2`` int64: pixels down, right), reflected at the border."""
    (h, w), (down, right) = images.shape[-2:], offset.to(images.device).T[..., None]

    def source(length: int, by: Tensor) -> Tensor:
        place = (torch.arange(length, device=images.device) - by).abs()
        return torch.where(place < length, place, 2 * (length - 1) - place)

    sample = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[sample, source(h, down)[:, :, None], source(w, right)[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def alterations(
    batch: Batch, others: Mapping[str, Batch], offset: Tensor, noise: Tensor, options: RelianceOptions
) -> Iterator[tuple[str, Images, Maps]]:
    """Yield each condition's name, its images ``b c h w``, and the share ``b 1 h w`` that is left of each pixel.

    Args:
        batch: images with their maps, own or lent.
        others: by condition, the images whose backgrounds are taken, with theirs.
        offset: ``b 2`` int64, how the control's background is moved.
        noise: ``b 1 h w``, standard normal.
        options: how composites are made.
    """
    image, saliency = batch.image, batch.saliency
    side = image.shape[-1]
    sigma = options.blur * side
    blurred = gaussian_blur(image, 2 * min(math.ceil(2 * sigma), side - 1) + 1, sigma)
    region = salient_region(saliency, options)
    yield "whole", image, torch.ones_like(region)
    yield "salient_only", composite(image, blurred, region), region
    yield "salient_blurred", composite(blurred, image, region), 1 - region
    yield "salient_noise", composite(_like_the_rest(image, region, noise), image, region), 1 - region
    for name, other in others.items():
        region = salient_region(saliency, options, other.saliency)
        yield name, composite(image, other.image, region), region
    region = salient_region(saliency, options, shifted(saliency, offset))
    yield "control", composite(image, shifted(image, offset), region), region


def _like_the_rest(image: Images, region: Maps, noise: Tensor) -> Images:
    """Return noise, the same in all channels, with each channel's mean and deviation outside the region.

    Inside, they would tell of what is to be hidden.
    """
    weight = 1 - region + 1e-6  # of the whole image where nothing lies outside
    weight = weight / weight.sum((2, 3), keepdim=True)
    mean = (weight * image).sum((2, 3), keepdim=True)
    variance = (weight * (image - mean) ** 2).sum((2, 3), keepdim=True)
    return mean + variance.sqrt() * noise.to(image)
