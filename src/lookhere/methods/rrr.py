"""RRR: Right for the Right Reasons, no input gradient where people did not look (Ross et al., IJCAI 2017).

With ``m = 1 - s``, ``p`` the softmax of the logits and the sum over all pixels and channels (arXiv 1703.03717)::

    L = CE(f(x), y) + lam * 1/2 * sum ( m * d/dx sum_c log p_c )^2

The factor 1/2 is that of the released code, which also has the L1 form ``lam * sum |m * d/dx sum_c log p_c|``. Its
penalty on the weights is the optimiser's weight decay here. The gradient of the gradient goes through batch norm in
training mode, where an image's gradient includes a little of the others' through the batch's statistics.

With two classes ``d/dx sum_c log p_c = (p_1 - p_0) * d(f_0 - f_1)/dx``, which is small while a network is undecided.
From one network to another the penalty R differs by more than ten orders of magnitude, so no ``lam`` suits them all;
``limit``, this package's addition, keeps it from drowning the cross-entropy::

    L = CE + lam * R * min(1, limit * CE / (lam * R))        no gradient through the minimum
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lookhere.attribution import input_gradient, twice_differentiable
from lookhere.batch import Batch
from lookhere.losses import wide
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean


class RRROptions(MethodOptions):
    """Options of RRR."""

    name: Literal["rrr"] = "rrr"
    """The method."""
    lam: float = Field(1e-4, ge=0, le=1e6)
    """Weight of the gradient penalty."""
    limit: Literal["none"] | Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The most that the weighted penalty counts, in multiples of the batch's cross-entropy; none as in the paper."""
    norm: Literal["l2", "l1"] = "l2"
    """Half the squared gradient as in the paper, or its absolute value; both are sums over pixels and channels."""


class RRR(Method):
    """RRR under the contract of a method. Samples without a map add cross-entropy only."""

    name = "rrr"
    paper = "Ross, Hughes & Doshi-Velez, 2017"
    guides = "gradient"
    Options = RRROptions
    options: RRROptions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, the cross-entropy, and the mean penalty before its weight and its limit."""
        o = self.options
        image = batch.image.detach().requires_grad_()
        with twice_differentiable():
            logits = self.backbone(image).logits
        ce = batch_mean(cross_entropy(logits, batch.label), batch)
        gradient = wide(input_gradient(wide(logits).log_softmax(1), image))
        wrong = (1 - batch.saliency.to(gradient)) * gradient
        reasons = guided_mean((wrong.square() / 2 if o.norm == "l2" else wrong.abs()).sum((1, 2, 3)), batch)
        penalty = o.lam * reasons
        if o.limit != "none":
            tiny = torch.finfo(penalty.dtype).tiny
            penalty = penalty * (o.limit * ce.detach() / penalty.detach().clamp_min(tiny)).clamp_max(1)
        return {"total": ce + penalty, "cross_entropy": ce, "right_reasons": reasons}
