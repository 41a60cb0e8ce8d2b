"""GradCAM-MSE: the Grad-CAM of the true class should be the saliency map ("HINT", simplified).

With ``A`` the Grad-CAM of the true class's logit at the feature map that the classifier pools, and ``s`` the saliency
map at its size::

    L = CE + lam * MSE(norm(relu(A)), s)

This is what the toolbox of Friedrich, Stammer, Schramowski & Kersting (Nature Machine Intelligence 2023, arXiv
2203.03668) calls HINT. HINT itself (Selvaraju et al., ICCV 2019) ranks regions instead. ``norm`` divides by the map's
maximum: zero, no evidence for the class, stays zero, which min-max would not grant; ``lam`` has no published value that
carries over, because the toolbox sums over pixels and samples, and means are taken here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from lookhere.attribution import grad_cam, of_class
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.map_losses import by_maximum, map_mse, min_max, resize_map
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean, require_backbone


class GradCamMseOptions(MethodOptions):
    """Options of GradCAM-MSE."""

    name: Literal["gradcam-mse"] = "gradcam-mse"
    """The method."""
    lam: float = Field(1.0, ge=0, le=1e6)
    """Weight of the map term. The toolbox's 1 multiplies a sum over pixels and samples: 980 of this one at 20 samples
    of 7 x 7."""
    normalise: Literal["max", "min-max"] = "max"
    """Divide the rectified map by its maximum, or stretch it from 0 to 1."""


class GradCamMse(Method):
    """GradCAM-MSE under the contract of a method. Samples without a map add cross-entropy only."""

    name = "gradcam-mse"
    paper = "after Selvaraju et al., 2019; Friedrich et al., 2023"
    guides = "map"
    Options = GradCamMseOptions
    backbone: Backbone
    options: GradCamMseOptions

    def __init__(self, backbone: Backbone | Tapped, options: GradCamMseOptions) -> None:
        super().__init__(require_backbone(backbone, type(self)), options)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy`` and ``map_mse``."""
        logits, _, feature_map, _ = self.backbone(batch.image)
        evidence = grad_cam(of_class(logits, batch.label), feature_map).relu()
        saliency = resize_map(batch.saliency, evidence.shape[-2:])
        cam = by_maximum(evidence) if self.options.normalise == "max" else min_max(evidence)
        ce = batch_mean(cross_entropy(logits, batch.label), batch)
        mse = guided_mean(map_mse(cam, saliency), batch)
        return {"total": ce + self.options.lam * mse, "cross_entropy": ce, "map_mse": mse}
