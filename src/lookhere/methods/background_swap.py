"""Background swap: cross-entropy on composites of an image's salient region and another image's background.

A composite carries the label of its region, so a network that reads the background is wrong about it half of the time::

    c = m * x + (1 - m) * x_p        m = feather(max(s, s_p)),  p = another image of the batch
    L = (1 - share) * CE(f(x), y) + share * CE(f(c), y)

It is this package's own, as the plain counterpart of SAGE with ``views.degrade = "swap"``: the same composites without
the contrastive terms. The idea of training on one image's content over another's surroundings is older: see Teso &
Kersting's counterexamples (AIES 2019) and the mixed backgrounds of Xiao et al. (ICLR 2021).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lookhere.batch import Batch
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy
from lookhere.passes import BatchNorm, forward_views
from lookhere.swap import SwapFrom, composite, draw_partners, swap_region


class BackgroundSwapOptions(MethodOptions):
    """Options of background swap."""

    name: Literal["background-swap"] = "background-swap"
    """The method."""
    share: float = Field(0.5, ge=0, le=1)
    """Share of the composite in a sample's loss; the rest is the image as it is."""
    swap_from: SwapFrom = "any"
    """Of which class the image is that gives the background."""
    respect_partner: bool = True
    """Keep what is salient in the image that gives the background out of the composite."""
    feather: float = Field(2.0, ge=0, le=50)
    """Standard deviation in pixels of the soft edge between region and background."""
    batch_norm: BatchNorm = "joint"
    """Whose statistics batch norm uses, as in SAGE: joint, per_view or clean."""


class BackgroundSwap(Method):
    """Cross-entropy on images and on composites. Samples without a map, or without a partner, are seen as they are."""

    name = "background-swap"
    paper = "this package, 2026"
    guides = "input"
    passes = 2
    Options = BackgroundSwapOptions
    options: BackgroundSwapOptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total`` and the cross-entropies of the images and, over those that have one, of the composites."""
        o = self.options
        partner = draw_partners(batch.label, o.swap_from)
        swapped = (batch.has_saliency & (partner >= 0)).nonzero().squeeze(1)
        views = [batch.image]
        if len(swapped):
            giver = partner[swapped]
            theirs = batch.saliency[giver] if o.respect_partner else None
            region = swap_region(batch.saliency[swapped], theirs, o.feather)
            views.append(composite(batch.image[swapped], batch.image[giver], region))
        features = forward_views(self.backbone, views, o.batch_norm)
        clean = cross_entropy(features[0].logits, batch.label)
        total, pasted = clean, clean.new_zeros(())
        if len(swapped):
            values = cross_entropy(features[1].logits, batch.label[swapped])
            total = clean.index_copy(0, swapped, (1 - o.share) * clean[swapped] + o.share * values)
            weight = batch.weight[swapped]
            pasted = (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        return {
            "total": batch_mean(total, batch),
            "cross_entropy": batch_mean(clean, batch),
            "composite_cross_entropy": pasted,
        }
