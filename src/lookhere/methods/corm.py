"""CoRM: the label must be found although noise covers what people did not mark (Singla et al., 2022).

With ``m = 1 - s`` and Gaussian noise of standard deviation ``noise``, drawn for each pixel and channel::

    L = CE(f(x), y) + CE(f(x + m * noise * N(0, 1)), y)

The formula is that of Heo, Piratla et al. (NeurIPS 2023, arXiv 2303.06419), who compare it with gradient penalties; the
two terms are added, not averaged, as in their code. Their values of the noise are for each data set its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lookhere.batch import Batch
from lookhere.blur import Images, Maps
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy
from lookhere.passes import BatchNorm, forward_views


class CoRMOptions(MethodOptions):
    """Options of CoRM."""

    name: Literal["corm"] = "corm"
    """The method."""
    noise: float = Field(1.0, ge=0, le=100)
    """Standard deviation of the noise, in units of the normalised image (1 is about a quarter of black to white)."""
    batch_norm: BatchNorm = "joint"
    """Whose statistics batch norm uses, as in SAGE: joint, per_view (as released) or clean."""


class CoRM(Method):
    """CoRM under the contract of a method. Samples without a map add the clean image's cross-entropy only."""

    name = "corm"
    paper = "Singla, Moayeri & Feizi, 2022"
    guides = "input"
    passes = 2
    Options = CoRMOptions
    options: CoRMOptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total`` and its two cross-entropies; that of the noisy images counts samples without a map as 0."""
        guided = batch.has_saliency.nonzero().squeeze(1)
        views = [batch.image]
        if len(guided):
            views.append(noise_outside(batch.image[guided], batch.saliency[guided], self.options.noise))
        clean, *noisy = forward_views(self.backbone, views, self.options.batch_norm)
        ce = batch_mean(cross_entropy(clean.logits, batch.label), batch)
        logits = noisy[0].logits if noisy else clean.logits[guided]  # of none
        noisy_ce = batch_mean(cross_entropy(logits, batch.label[guided]), batch, guided)
        return {"total": ce + noisy_ce, "cross_entropy": ce, "noisy_cross_entropy": noisy_ce}


def noise_outside(images: Images, saliency: Maps, noise: float) -> Images:
    """Return images ``b c h w`` with Gaussian noise of that deviation, times 1 minus the map ``b 1 h w``."""
    return images + (1 - saliency.to(images)) * noise * torch.randn_like(images)
