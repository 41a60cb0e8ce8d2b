"""GG-CAM: a classifier made of class activation maps, which gaze guides (Zhu, Salcudean & Rohling, 2022).

The backbone's pooling and linear layer give way to one map per class, of which the logits are the means. With ``f`` the
feature map of ``C`` channels, ``s`` the saliency map at its size and ``y`` the label (arXiv 2202.07107)::

    cam_k(i, j) = sum_c W[k, c] * f[c, i, j]           logit_k = mean_ij cam_k + b_k
    D = MSE(sigmoid(exp(k) * cam_y + shift), s)
    L = CE / sigma_c^2 + log(sigma_c + 1) + D / (2 sigma_d^2) + log(sigma_d + 1)

The paper's map is a mean over the channels, which SGD as in this package's protocol does not train (``channels``). Both
sigmas and k are learnt, the sigmas by their logarithms. The sigmoid on the map is how the loss can have been
meant; the released code applies it elsewhere (``variant``). D and the logarithm of its sigma are counted together, for
samples with a map only: batches without one would otherwise push sigma_d to 0, and the weight of D beyond all bounds.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lookhere.attribution import of_class
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.losses import wide
from lookhere.map_losses import map_mse, resize_map
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean, require_backbone


class GgCamOptions(MethodOptions):
    """Options of GG-CAM."""

    name: Literal["gg-cam"] = "gg-cam"
    """The method."""
    channels: Literal["sum", "mean"] = "sum"
    """How a class's map is made of the weighted channels: their sum, an ordinary classifier's map, or their mean as
    published, which needs Adam: it divides what a step of SGD changes by the squared number of channels."""
    shift: float = Field(0.0, ge=-20, le=20)
    """Added to the scaled map before its sigmoid; a constant, as in the released runs."""
    variant: Literal["paper", "released"] = "paper"
    """The true class's map and neutral weights at the start, or what the released code does: it compares the map of
    class 0 without a sigmoid, whatever the label, and starts from log sigma_c = 7 and log sigma_d = -23 (-16 for an
    EfficientNet), which only Adam survives."""


class GgCam(Method):
    """GG-CAM under the contract of a method. Samples without a map add cross-entropy only.

    Logits come from the method's own head; the backbone's classifier is left as it is and not trained.
    """

    name = "gg-cam"
    paper = "Zhu, Salcudean & Rohling, 2022"
    guides = "map"
    Options = GgCamOptions
    backbone: Backbone
    options: GgCamOptions

    def __init__(self, backbone: Backbone | Tapped, options: GgCamOptions) -> None:
        super().__init__(require_backbone(backbone, type(self)), options)
        classifier = self.backbone.model.get_classifier()
        classifier.requires_grad_(False)
        channels, classes = self.backbone.model.num_features, classifier.out_features
        bound = channels**-0.5
        self.weight = nn.Parameter(torch.empty(classes, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(classes).uniform_(-bound, bound))
        released = options.variant == "released"
        efficient = type(self.backbone.model).__name__ == "EfficientNet"
        self.log_sigma_c = nn.Parameter(torch.tensor(7.0 if released else 0.0))
        self.log_sigma_d = nn.Parameter(torch.tensor((-16.0 if efficient else -23.0) if released else 0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0), requires_grad=not released)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy``, ``map_mse`` and the learnt ``sigma_c``, ``sigma_d`` and ``scale``."""
        logits, maps = self._classify(batch.image)
        saliency = resize_map(batch.saliency, maps.shape[-2:])
        if self.options.variant == "released":
            cam = maps[:, :1]
        else:
            scaled = self.log_scale.exp() * of_class(maps, batch.label)[:, None] + self.options.shift
            cam = scaled.sigmoid()
        ce, difference = cross_entropy(logits, batch.label), map_mse(cam, saliency)
        # log(sigma + 1) is softplus(log sigma), and that is finite for every sigma.
        classify = ce * torch.exp(-2 * self.log_sigma_c) + F.softplus(self.log_sigma_c)
        guide = difference * torch.exp(-2 * self.log_sigma_d) / 2 + F.softplus(self.log_sigma_d)
        return {
            "total": batch_mean(classify, batch) + guided_mean(guide, batch),
            "cross_entropy": batch_mean(ce, batch),
            "map_mse": guided_mean(difference, batch),
            "sigma_c": self.log_sigma_c.exp(),
            "sigma_d": self.log_sigma_d.exp(),
            "scale": self.log_scale.exp(),
        }

    def predict(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Return logits ``b k`` of images ``b 3 h w``, from the method's own head."""
        return self._classify(image)[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the mean over channels means for the optimiser."""
        if self.options.channels == "sum":
            return ()
        return ("its maps are means over channels, as published: SGD hardly trains such a head, Adam does",)

    def _classify(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``b k`` and class activation maps ``b k h w``, the logits being their means plus the bias."""
        feature_map = self.backbone(image).feature_map
        if feature_map.ndim != 4:
            raise UsageError("gg-cam needs a feature map, and this network gives tokens; take one such as resnet50")
        maps = wide(torch.einsum("kc,bchw->bkhw", self.weight, feature_map))
        if self.options.channels == "mean":
            maps = maps / self.weight.shape[1]
        return maps.mean((2, 3)) + self.bias, maps
