"""ActDiff: the embedding should not change when the pixels outside the mask are shuffled (Viviano et al., ICLR 2021).

With ``z`` the embedding, and ``x_shuf`` the image whose pixels outside a binary mask are permuted (arXiv 1910.00199)::

    L = CE(f(x), y) + lam * mean || z(x) - z(x_shuf) ||_2

Pixels move as a whole, with all of their channels, and only among those outside the mask; each sample and step draws a
permutation of its own. The gradient flows through both passes. The released configurations give ``lam`` values such as
1.60, but the released loss only looks whether ``lam`` is above zero and never multiplies by it; the default here is the
equation with that value, and ``variant = "released"`` the loss as it was run, that is ``lam = 1``.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from lookhere.batch import Batch
from lookhere.blur import Images
from lookhere.losses import wide
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy
from lookhere.passes import BatchNorm, forward_views


class ActDiffOptions(MethodOptions):
    """Options of ActDiff."""

    name: Literal["actdiff"] = "actdiff"
    """The method."""
    lam: float = Field(1.6, ge=0, le=1e6)
    """Weight of the distance between embeddings."""
    threshold: float = Field(0.5, ge=0, lt=1)
    """Pixels whose saliency is above this are inside the mask and stay where they are."""
    variant: Literal["paper", "released"] = "paper"
    """Multiply the distance by ``lam``, or, as the released code does, leave it as it is wherever ``lam`` is not 0."""
    batch_norm: BatchNorm = "joint"
    """Whose statistics batch norm uses, as in SAGE: joint, per_view (as released) or clean."""


class ActDiff(Method):
    """ActDiff under the contract of a method. Samples without a map add cross-entropy only, and no second pass."""

    name = "actdiff"
    paper = "Viviano, Simpson, Dutil, Bengio & Cohen, 2021"
    guides = "embedding"
    passes = 2
    Options = ActDiffOptions
    options: ActDiffOptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, the cross-entropy of the clean images, and the mean distance before its weight."""
        o = self.options
        guided = batch.has_saliency.nonzero().squeeze(1)
        views = [batch.image]
        if len(guided):
            views.append(shuffle_outside(batch.image[guided], batch.saliency[guided] > o.threshold))
        clean, *shuffled = forward_views(self.backbone, views, o.batch_norm)
        ce = batch_mean(cross_entropy(clean.logits, batch.label), batch)
        ours = clean.embedding[guided]
        difference = wide(ours) - wide(shuffled[0].embedding if shuffled else ours)  # of none
        distance = batch_mean(torch.linalg.vector_norm(difference, dim=1), batch, guided)
        lam = float(o.lam > 0) if o.variant == "released" else o.lam
        return {"total": ce + lam * distance, "cross_entropy": ce, "activation_difference": distance}


def shuffle_outside(images: Images, inside: Bool[Tensor, "b 1 h w"]) -> Images:
    """Return images ``b c h w`` whose pixels outside of ``inside`` are permuted, by a draw of each image's own."""
    kept = inside.flatten(1)
    draws = torch.rand(kept.shape, device=images.device).masked_fill(kept, 1.0)  # rand stays below 1
    # Both orders name the outside pixels first, one as they lie and one at random, and then those inside as they lie.
    places, random = kept.byte().argsort(dim=1, stable=True), draws.argsort(dim=1, stable=True)
    source = torch.empty_like(places).scatter(1, places, random)
    return images.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1)).view(images.shape)
