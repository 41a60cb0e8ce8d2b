"""Blur augmentation: what people did not mark is blurred in the training images (Boyd, Bowyer & Czajka, WACV 2022).

With a level ``sigma`` from a list, and ``G`` a Gaussian blur (arXiv 2105.03492)::

    x~ = s * x + (1 - s) * G_sigma(x)
    L = CE(f(x~), y)

The training lists that the authors' group released hold every image at every level, level 0 being the image itself:
the set is expanded before training. Here each sample draws one level whenever it is seen (``online``), which costs
nothing, or all levels of a sample are in the loss of one step (``expand``). Kernel size, and whether the region is soft
or binary, are not public: the Gaussian is not truncated, and the region is as soft as the saliency map.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lookhere.batch import Batch
from lookhere.blur import Images, Maps, blur_each
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy


class BlurAugmentationOptions(MethodOptions):
    """Options of blur augmentation."""

    name: Literal["blur-augmentation"] = "blur-augmentation"
    """The method."""
    levels: tuple[float, ...] = Field((0, 2, 4, 6, 8, 10, 12, 14, 16), min_length=1, max_length=64)
    """Standard deviations of the blur, each from 0 to 200, in pixels of the image that the network sees; 0 is none."""
    mode: Literal["online", "expand"] = "online"
    """One level drawn for each sample and step, or every level of every sample in each step, as the released lists."""

    @field_validator("levels")
    @classmethod
    def _in_range(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        for level in levels:
            if not 0 <= level <= 200:
                raise ValueError(f"expected levels from 0 to 200 pixels, got {level:g}")
        return levels


class BlurAugmentation(Method):
    """Cross-entropy on partly blurred images. Samples without a map are seen as they are.

    Beside the loss, ``sigma`` is the mean level of the samples that have a map.
    """

    name = "blur-augmentation"
    paper = "Boyd, Bowyer & Czajka, 2022"
    guides = "input"
    Options = BlurAugmentationOptions
    options: BlurAugmentationOptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, which is the cross-entropy, and the mean level."""
        levels = torch.tensor(self.options.levels, device=batch.image.device)
        guided = batch.has_saliency
        if self.options.mode == "online":
            sigma = levels[torch.randint(len(levels), (len(batch),), device=levels.device)] * guided
            image = blur_outside(batch.image, batch.saliency, sigma)
            ce = cross_entropy(self.backbone(image).logits, batch.label)
            mean_level = sigma.sum() / guided.sum().clamp_min(1)
        else:
            # One copy of each sample, and of those with a map one for every further level.
            sample = torch.arange(len(batch), device=levels.device)
            further = sample[guided].repeat(len(levels) - 1)
            sigma = torch.cat([levels[0] * guided, levels[1:].repeat_interleave(guided.sum())])
            sample = torch.cat([sample, further])
            image = blur_outside(batch.image[sample], batch.saliency[sample], sigma)
            each = cross_entropy(self.backbone(image).logits, batch.label[sample])
            copies = torch.where(guided, len(levels), 1)
            ce = torch.zeros_like(each[: len(batch)]).index_add(0, sample, each) / copies
            mean_level = levels.mean() * guided.any()
        loss = batch_mean(ce, batch)
        return {"total": loss, "cross_entropy": loss, "sigma": mean_level}


def blur_outside(images: Images, saliency: Maps, sigma: Tensor) -> Images:
    """Return images ``b c h w`` blurred by their own ``sigma`` (``b``, pixels) where their map ``b 1 h w`` is 0."""
    return torch.lerp(blur_each(images, sigma), images, saliency.to(images))
