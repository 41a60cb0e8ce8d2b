"""Energy: what speaks for the true class should lie where people look (Rao, Böhle et al., ICCV 2023).

With ``A+`` the positive part of the attribution of the true class's logit and ``s`` the saliency map, both at the size
of the image::

    L = CE + lam * (1 - sum(A+ * s) / sum(A+))

The paper ("Studying how to efficiently and effectively guide models with explanations") takes boxes, so that nothing in
the region is better than anything else in it. With a graded map the loss is lowest where all attribution lies on the
map's peak; ``threshold`` makes a region of it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

from pydantic import Field
from torch import Tensor

from lookhere.attribution import grad_cam, input_gradient, of_class, twice_differentiable
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.map_losses import map_energy, resize_map
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean, require_backbone


class EnergyOptions(MethodOptions):
    """Options of Energy."""

    name: Literal["energy"] = "energy"
    """The method."""
    lam: float = Field(1.0, ge=0, le=1e6)
    """Weight of the map term, which lies between 0 and 1."""
    attribution: Literal["grad-cam", "input-gradient"] = "grad-cam"
    """Grad-CAM at the map that the classifier pools (the paper's layer Final), or input times gradient (Input), which
    costs a second derivative of the whole network."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Above 0: the region is where the saliency map exceeds this, as a box would be. 0: the map weighs as it is."""


class Energy(Method):
    """Energy under the contract of a method. Samples without a map add cross-entropy only."""

    name = "energy"
    paper = "Rao, Böhle, Parchami-Araghi & Schiele, 2023"
    guides = "map"
    Options = EnergyOptions
    options: EnergyOptions

    def __init__(self, backbone: Backbone | Tapped, options: EnergyOptions) -> None:
        super().__init__(backbone, options)
        if options.attribution == "grad-cam":
            require_backbone(backbone, type(self))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy`` and ``energy_outside``."""
        o = self.options
        by_input = o.attribution == "input-gradient"
        image = batch.image.detach().requires_grad_(by_input)
        with twice_differentiable() if by_input else nullcontext():
            logits, _, feature_map, _ = self.backbone(image)
        score = of_class(logits, batch.label)
        if by_input:
            attribution = (input_gradient(score, image) * image).sum(1, keepdim=True)
        else:
            attribution = resize_map(grad_cam(score, feature_map).relu(), image.shape[-2:])
        region = (batch.saliency > o.threshold).to(batch.saliency) if o.threshold > 0 else batch.saliency
        ce = batch_mean(cross_entropy(logits, batch.label), batch)
        outside = guided_mean(map_energy(attribution, region), batch)
        return {"total": ce + o.lam * outside, "cross_entropy": ce, "energy_outside": outside}
