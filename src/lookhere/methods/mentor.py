"""MENTOR: first learn to draw where people look, then to classify with the same encoder (Crum & Czajka, 2023).

Stage ``map`` trains the backbone as the encoder of a U-Net++ ``d`` (arXiv 2310.19545; WACV 2025), without labels::

    L = MSE(sigmoid(d(x)), s)

Stage ``classify`` trains the backbone from there, with the fresh classifier and without the decoder. Its loss is
cross-entropy; CYBORG's (the paper's "MENTOR + CYBORG", which the released code cannot reach) or SAGE's may take its
place. Encoder and classifier are one module in both stages, so no weight is renamed or matched by its position.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.decoder import DecoderName, MapDecoder
from lookhere.losses import wide
from lookhere.map_losses import map_mse
from lookhere.methods.base import (
    CrossEntropyOptions,
    Method,
    MethodOptions,
    Stage,
    guided_mean,
    map_stage,
    require_backbone,
)
from lookhere.methods.cyborg import Cyborg, CyborgOptions
from lookhere.methods.sage import Sage, SageOptions


class MentorOptions(MethodOptions):
    """Options of MENTOR; those of ``training`` are for its second stage."""

    name: Literal["mentor"] = "mentor"
    """The method."""
    map_decoder: DecoderName = "unet++"
    """The decoder of the map stage; U-Net++ needs a ``data.size`` that is a multiple of 32."""
    map_epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training images that have a map, in the map stage."""
    map_learning_rate: float = Field(1e-4, gt=0, le=10)
    """Step size of Adam in the map stage, the same in all epochs."""
    map_batch_size: int = Field(4, ge=2, le=65_536)
    """Images per step of the map stage."""
    then: Literal["cross-entropy", "cyborg", "sage"] = "cross-entropy"
    """The method of the second stage."""
    cyborg: CyborgOptions = CyborgOptions()
    """Options of ``then = "cyborg"``."""
    sage: SageOptions = SageOptions()
    """Options of ``then = "sage"``."""


class Mentor(Method):
    """MENTOR under the contract of a method. Samples without a map take part in the second stage only.

    ``predict_map`` is right with the weights that the map stage ended with: the second stage changes the encoder and
    not the decoder.
    """

    name = "mentor"
    paper = "Crum & Czajka, 2023"
    guides = "map"
    Options = MentorOptions
    backbone: Backbone
    options: MentorOptions

    def __init__(self, backbone: Backbone | Tapped, options: MentorOptions) -> None:
        super().__init__(require_backbone(backbone, type(self)), options)
        self.decoder = MapDecoder(self.backbone, options.map_decoder)
        self.then = _second(self.backbone, options)
        # A plain attribute there, so that the state holds the backbone once, under this method's name for it.
        self.then.__dict__["backbone"] = self.then._modules.pop("backbone")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total`` and ``map_mse`` in the map stage, and the parts of the second stage's method in that."""
        if self.stage.predicts == "label":
            return self.then(batch)
        loss = guided_mean(map_mse(self.predict_map(batch.image), batch.saliency), batch)
        return {"total": loss, "map_mse": loss}

    def predict_map(self, image: Tensor) -> Tensor:
        """Return saliency maps ``b 1 h w`` in [0, 1] of images ``b 3 h w``."""
        return wide(self.decoder(image, self.backbone(image, pyramid=True).pyramid)).sigmoid()

    def stages(self) -> tuple[Stage, ...]:
        """Return the map stage, with an optimisation of its own, and the stage that ``training`` describes."""
        o = self.options
        return map_stage(o.map_epochs, o.map_batch_size, o.map_learning_rate), Stage()

    def begin(self, stage: Stage) -> None:
        """Enter a stage; the map stage leaves the classifier out, and the other one the decoder."""
        super().begin(stage)
        learns_maps = stage.predicts == "map"
        self.decoder.requires_grad_(learns_maps)
        self.backbone.model.get_classifier().requires_grad_(not learns_maps)

    def check_size(self, side: int) -> None:
        """Raise UsageError if the decoder cannot take images of ``side`` x ``side`` pixels."""
        self.decoder.check_size(side, side)
        self.then.check_size(side)


def _second(backbone: Backbone, options: MentorOptions) -> Method:
    """Return the method of the second stage, around the same backbone."""
    if options.then == "cyborg":
        return Cyborg(backbone, options.cyborg)
    if options.then == "sage":
        return Sage(backbone, options.sage)
    return Method(backbone, CrossEntropyOptions())
