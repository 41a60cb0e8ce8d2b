"""GazeGNN: gaze as an input, on a graph of image patches (Wang et al., WACV 2024).

The network is a Pyramid ViG (``pvig.py``) whose patches carry where people look (arXiv 2305.18221)::

    node = patch embedding + position embedding + BN(g),   g = how much each patch was looked at, in every channel
    L = CE

Gaze guides by being there; no term of the loss compares anything with it. So an image needs gaze at test time too, and
what stands for it where nobody looked must be said: ``gaze_at_test``. The paper has the gaze of each test image; SAGE,
which reports the method on sets without gaze, does not say what it fed.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.decoder import DecoderName, MapDecoder
from lookhere.errors import UsageError
from lookhere.losses import wide
from lookhere.map_losses import map_mse
from lookhere.methods.base import Method, MethodOptions, Stage, batch_mean, cross_entropy, guided_mean, map_stage
from lookhere.pvig import PViG

NOTES = {
    "none": "At test time no image was given a gaze map and no gaze embedding was added, unlike in training.",
    "uniform": "At test time every image was given the same constant gaze map, which marks no region.",
    "given": "At test time every image was given its own saliency map, which a use without people does not have.",
    "predicted": "At test time every image was given a gaze map that a network predicted from the image, "
    "trained on the saliency maps of the training images.",
}


class GazeGnnOptions(MethodOptions):
    """Options of GazeGNN; those of ``training`` are for the classifier."""

    name: Literal["gaze-gnn"] = "gaze-gnn"
    """The method."""
    gaze_at_test: Literal["none", "uniform", "given", "predicted"] = "uniform"
    """The gaze of a test image, and of a training image without a map: no gaze embedding, a constant map (what the
    released code makes of an image without gaze), the image's own map (in training, constant where there is none), or
    a map that a network predicts, which is trained first."""
    map_decoder: DecoderName = "unet"
    """The decoder of the network that predicts maps; its encoder is a copy of the classifier's."""
    map_epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training images that have a map, in the training of the predictor."""
    map_learning_rate: float = Field(1e-4, gt=0, le=10)
    """Step size of Adam in the training of the predictor, the same in all epochs."""
    map_batch_size: int = Field(4, ge=2, le=65_536)
    """Images per step of the training of the predictor."""


class GazeGnn(Method):
    """GazeGNN under the contract of a method.

    Raises:
        UsageError: a backbone that is not a Pyramid ViG.
    """

    name = "gaze-gnn"
    paper = "Wang et al., 2024"
    guides = "input"
    maps_at_test = "with gaze_at_test = given"
    network = "pvig_ti"
    Options = GazeGnnOptions
    backbone: Backbone
    options: GazeGnnOptions

    def __init__(self, backbone: Backbone | Tapped, options: GazeGnnOptions) -> None:
        if not isinstance(backbone, Backbone) or not isinstance(backbone.model, PViG):
            raise UsageError(
                "gaze-gnn is a network of its own; leave --backbone out, or give pvig_ti, pvig_s, pvig_m, pvig_b"
            )
        super().__init__(backbone, options)
        self.predictor = _MapPredictor(backbone, options.map_decoder) if options.gaze_at_test == "predicted" else None
        self.begin(self.stage)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total`` and ``cross_entropy``, or in the map stage ``total`` and ``map_mse``."""
        if self.stage.predicts == "map":
            loss = guided_mean(map_mse(self.predict_map(batch.image), batch.saliency), batch)
            return {"total": loss, "map_mse": loss}
        without_gaze = self.options.gaze_at_test == "none"
        logits = self.backbone.model(
            batch.image, self._training_gaze(batch), batch.has_saliency if without_gaze else None
        )
        loss = batch_mean(cross_entropy(logits, batch.label), batch)
        return {"total": loss, "cross_entropy": loss}

    def _training_gaze(self, batch: Batch) -> Tensor:
        """Return each sample's map ``b 1 h w``; where it has none, what stands for it at test time."""
        own = torch.where(batch.has_saliency.view(-1, 1, 1, 1), batch.saliency, torch.zeros_like(batch.saliency))
        lacking = (~batch.has_saliency).nonzero().squeeze(1)
        if self.predictor is None or len(lacking) == 0:
            return own
        with torch.no_grad():
            return own.index_copy(0, lacking, self.predict_map(batch.image[lacking]).to(own))

    def predict(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Return logits ``b k`` of images ``b 3 h w``; ``saliency`` is read with ``gaze_at_test = "given"`` alone.

        Raises:
            UsageError: that option, and no saliency.
        """
        match self.options.gaze_at_test:
            case "none":
                gaze = None
            case "uniform":
                gaze = image.new_zeros(len(image), 1, *image.shape[-2:])
            case "given":
                if saliency is None:
                    raise UsageError('gaze-gnn with gaze_at_test = "given" needs the saliency maps of the images')
                gaze = saliency
            case "predicted":
                gaze = self.predict_map(image)
        logits: Tensor = self.backbone.model(image, gaze)
        return logits

    def predict_map(self, image: Tensor) -> Tensor:
        """Return saliency maps ``b 1 h w`` in [0, 1] of images ``b 3 h w``.

        Raises:
            UsageError: there is no predictor.
        """
        if self.predictor is None:
            raise UsageError('gaze-gnn learns to predict maps with gaze_at_test = "predicted" only')
        return wide(self.predictor(image)).sigmoid()

    def stages(self) -> tuple[Stage, ...]:
        """Return the training of the map predictor, where there is one, and that of the classifier."""
        if self.predictor is None:
            return (Stage(),)
        o = self.options
        return map_stage(o.map_epochs, o.map_batch_size, o.map_learning_rate), Stage()

    def begin(self, stage: Stage) -> None:
        """Enter a stage; of the predictor and the classifier it trains one and freezes the other."""
        super().begin(stage)
        if self.predictor is not None:
            self.predictor.requires_grad_(stage.predicts == "map")
            self.backbone.requires_grad_(stage.predicts == "label")
            self.train(self.training)

    def train(self, mode: bool = True) -> GazeGnn:
        """Set the training mode; a frozen predictor stays in evaluation mode, with the statistics that it learnt."""
        super().train(mode)
        if self.predictor is not None and self.stage.predicts == "label":
            self.predictor.eval()
        return self

    @property
    def needs_maps_at_test(self) -> bool:
        """Does ``predict`` read the samples' own maps?"""
        return self.options.gaze_at_test == "given"

    @property
    def notes(self) -> tuple[str, ...]:
        """Which gaze the test images were given."""
        return (NOTES[self.options.gaze_at_test],)


class _MapPredictor(nn.Module):
    """Predicts map logits ``b 1 h w``: a copy of a Pyramid ViG without its head, and a decoder."""

    def __init__(self, backbone: Backbone, decoder: DecoderName) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(backbone.model)
        for unused in ("head", "classifier", "gaze_norm"):
            delattr(self.encoder, unused)
        self.decoder = MapDecoder(backbone, decoder)

    def forward(self, image: Tensor) -> Tensor:
        levels = self.encoder.forward_intermediates(image)[1]
        logits: Tensor = self.decoder(image, tuple(levels))
        return logits
