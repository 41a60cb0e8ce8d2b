"""UNET+Gaze: one encoder that classifies, and whose decoder draws where people look (Karargyris et al., 2021).

A U-Net decoder on the classifier's pyramid gives map logits ``m``; the classifier reads the deepest features, as it
does without a decoder, which is only needed for training (Scientific Data 8:92)::

    L = gamma * CE + (1 - gamma) * BCE(m, s)

The original is multi-label: its first term is a binary cross-entropy for each of three findings. Here it is
cross-entropy over the classes, as in SAGE's comparison, which does not tell gamma: it is 0.5, as every share between
two terms in that paper. The original's search found 0.41731 on its chest radiographs.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.decoder import MapDecoder
from lookhere.errors import UsageError
from lookhere.losses import wide
from lookhere.map_losses import map_bce, map_dice
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy, guided_mean, require_backbone


class UnetGazeOptions(MethodOptions):
    """Options of UNET+Gaze."""

    name: Literal["unet-gaze"] = "unet-gaze"
    """The method."""
    gamma: float = Field(0.5, ge=0, le=1)
    """Share of cross-entropy in the loss; 0.41731 in the original's tuned command. At 1 the maps are not used."""
    map_loss: Literal["bce", "dice"] = "bce"
    """Between predicted and given map: binary cross-entropy for each pixel, or soft Dice."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embedding that is dropped before the classifier in training; 0.5 in the original."""


class UnetGaze(Method):
    """UNET+Gaze under the contract of a method. Samples without a map add cross-entropy only."""

    name = "unet-gaze"
    paper = "Karargyris et al., 2021"
    guides = "map"
    Options = UnetGazeOptions
    backbone: Backbone
    options: UnetGazeOptions

    def __init__(self, backbone: Backbone | Tapped, options: UnetGazeOptions) -> None:
        super().__init__(require_backbone(backbone, type(self)), options)
        self.decoder = MapDecoder(self.backbone, "unet")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy`` and ``map_bce`` or ``map_dice``."""
        o = self.options
        logits, embedding, _, pyramid = self.backbone(batch.image, pyramid=True)
        if o.dropout and self.training:
            logits = self.backbone.model.get_classifier()(F.dropout(embedding, o.dropout))
        loss = map_bce if o.map_loss == "bce" else map_dice
        ce = batch_mean(cross_entropy(logits, batch.label), batch)
        guidance = guided_mean(loss(self.decoder(batch.image, pyramid), batch.saliency), batch)
        return {
            "total": o.gamma * ce + (1 - o.gamma) * guidance,
            "cross_entropy": ce,
            f"map_{o.map_loss}": guidance,
        }

    def predict_map(self, image: Tensor) -> Tensor:
        """Return saliency maps ``b 1 h w`` in [0, 1] of images ``b 3 h w``.

        Raises:
            UsageError: gamma = 1, with which no map is learnt.
        """
        if self.options.gamma == 1:
            raise UsageError("unet-gaze with gamma = 1 does not learn to predict maps; train it with a lower gamma")
        return wide(self.decoder(image, self.backbone(image, pyramid=True).pyramid)).sigmoid()
