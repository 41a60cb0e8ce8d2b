"""Harmonization: the input gradient of the true class should look like the human map (Fel et al., NeurIPS 2022).

With ``f_y`` the logit of the true class, ``P_i`` the levels of a pyramid and ``z`` a map cut at its mean (arXiv
2211.04533, as in the released code)::

    g = channel mean of d f_y / dx
    z(a) = relu((a - mean(a)) / (std(a) + 1e-5))
    a = z(g),  b = z(s) * max(z(g)) / max(z(s))            no gradient through max(z(g))
    L = CE(f(x), y) + lam * mean_i MSE(P_i(a), P_i(b))

Level 0 of the pyramid is the map itself; each further one is blurred by the binomial kernel (1 4 6 4 1) / 16 in both
dimensions and halved. The paper's penalty on the weights, 1e-5, is the optimiser's weight decay.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lookhere.attribution import input_gradient, of_class, twice_differentiable
from lookhere.batch import Batch
from lookhere.losses import wide
from lookhere.map_losses import Maps, PerSample, map_mse
from lookhere.methods.base import Method, MethodOptions, batch_mean, guided_mean


class HarmonizationOptions(MethodOptions):
    """Options of harmonization."""

    name: Literal["harmonization"] = "harmonization"
    """The method."""
    lam: float = Field(1.0, ge=0, le=1e6)
    """Weight of the difference between the maps."""
    levels: int = Field(5, ge=1, le=12)
    """Levels of the pyramid on which maps are compared, the full size included."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the label that cross-entropy spreads over all classes; 0 is the cross-entropy of the other methods."""


class Harmonization(Method):
    """Harmonization under the contract of a method. Samples without a map add cross-entropy only."""

    name = "harmonization"
    paper = "Fel, Felipe, Linsley & Serre, 2022"
    guides = "gradient"
    Options = HarmonizationOptions
    options: HarmonizationOptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, the (smoothed) cross-entropy, and the mean difference of the maps before its weight."""
        o = self.options
        image = batch.image.detach().requires_grad_()
        with twice_differentiable():
            logits = self.backbone(image).logits
        ce = F.cross_entropy(wide(logits), batch.label, reduction="none", label_smoothing=o.label_smoothing)
        gradient = wide(input_gradient(of_class(logits, batch.label), image)).mean(1, keepdim=True)
        difference = guided_mean(pyramid_difference(gradient, batch.saliency, o.levels), batch)
        ce = batch_mean(ce, batch)
        return {"total": ce + o.lam * difference, "cross_entropy": ce, "map_difference": difference}


def pyramid_difference(gradient: Maps, saliency: Maps, levels: int) -> PerSample:
    """Return the mean squared difference of two maps ``b 1 h w`` after ``cut``, a mean over a pyramid, ``b``.

    The saliency map takes the height of the gradient's highest peak, without a gradient through it.
    """
    ours, theirs = cut(gradient), cut(saliency.to(gradient))
    peak = ours.detach().amax((2, 3), keepdim=True)
    theirs = theirs * peak / theirs.amax((2, 3), keepdim=True).clamp_min(1e-6)
    total = map_mse(ours, theirs)
    for _ in range(levels - 1):
        ours, theirs = halve(ours), halve(theirs)
        total = total + map_mse(ours, theirs)
    return total / levels


def cut(maps: Maps) -> Maps:
    """Return what rises above each map's mean, in standard deviations, ``b 1 h w``; 0 where a map is constant."""
    std, mean = torch.std_mean(maps, (1, 2, 3), correction=0, keepdim=True)
    return ((maps - mean) / (std + 1e-5)).relu()  # as published: a gradient that is all but zero stays small


def halve(maps: Maps) -> Maps:
    """Return the next level of a pyramid, half the size (rounded up); beyond the border, its pixels are repeated."""
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=maps.dtype, device=maps.device) / 16
    padded = F.pad(maps, (2, 2, 2, 2), mode="replicate")
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(padded, torch.outer(weights, weights)[None, None], stride=2)
