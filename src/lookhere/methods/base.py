"""The contract of a training method, which is cross-entropy itself.

A method owns its backbone. ``forward`` turns a batch into the named parts of the loss and their ``total``, in one call,
so that data-parallel wrappers see one forward pass per step; ``predict`` is inference; ``stages`` lists what is trained
in turn. The training loop knows nothing else of methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookhere import processes
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.options import Options


@dataclass(frozen=True)
class Stage:
    """One of a method's training stages, passed through in turn."""

    name: str = "classify"
    """What the metrics file calls it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Training options that differ from the configuration in this stage."""
    predicts: Literal["label", "map"] = "label"
    """What is learnt. A stage that learns labels keeps the epoch that ``training.select`` says. One that learns maps
    sees only the samples that have one, and keeps the epoch whose ``predict_map`` has the lowest mean squared error on
    those of ``val``."""


def map_stage(epochs: int, batch_size: int, learning_rate: float) -> Stage:
    """Return a stage that learns maps, by Adam at one step size and without decay of any kind (as MENTOR's does)."""
    optimisation = {"optimizer": "adam", "decay": 1.0, "weight_decay": 0.0}
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    return Stage("map", optimisation | given, predicts="map")


class MethodOptions(Options):
    """Options of a method; each subclass narrows ``name`` to its own."""

    name: str


class CrossEntropyOptions(MethodOptions):
    """Cross-entropy has no options."""

    name: Literal["cross-entropy"] = "cross-entropy"
    """The method."""


class Method(nn.Module):
    """A training method: cross-entropy on the clean image, and the base of every other.

    Args:
        backbone: the classifier that is trained.
        options: an instance of ``Options``.
    """

    name: ClassVar[str] = "cross-entropy"
    paper: ClassVar[str] = "the baseline, without guidance"
    """Authors and year."""
    guides: ClassVar[str] = "nothing"
    """What the guidance acts on: input, map, embedding, logits."""
    maps_at_test: ClassVar[str] = "no"
    """Does prediction need saliency maps: no, or under which option."""
    network: ClassVar[str | None] = None
    """The backbone of a method that is a network of its own; none for methods that train any backbone."""
    passes: ClassVar[int] = 1
    """Views of an image that a training step sends through the network."""
    Options: ClassVar[type[MethodOptions]] = CrossEntropyOptions

    def __init__(self, backbone: Backbone | Tapped, options: MethodOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.stage = Stage()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the current stage's loss, scalars, and their ``total``, the one to call backward on."""
        loss = batch_mean(cross_entropy(self.backbone(batch.image).logits, batch.label), batch)
        return {"total": loss, "cross_entropy": loss}

    def predict(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Return logits ``b k`` of images ``b 3 h w``; ``saliency`` is for methods that need a map at test time."""
        return self.backbone(image).logits

    def predict_map(self, image: Tensor) -> Tensor:
        """Return saliency maps ``b 1 h w`` in [0, 1] of images ``b 3 h w``.

        Raises:
            UsageError: the method does not learn to predict maps.
        """
        raise UsageError(f"method {self.name} does not learn to predict maps; train mentor or unet-gaze")

    def stages(self) -> tuple[Stage, ...]:
        """Return the training stages, in order."""
        return (Stage(),)

    def begin(self, stage: Stage) -> None:
        """Enter a stage: ``forward`` then gives its loss. Parameters that need no gradient in it are left out."""
        self.stage = stage

    def check_size(self, side: int) -> None:
        """Raise UsageError if the method cannot take images of ``side`` x ``side`` pixels."""

    @property
    def needs_maps_at_test(self) -> bool:
        """Does ``predict`` read the samples' own maps, so that each must have one?"""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know beside the options, a sentence each."""
        return ()


def require_backbone(backbone: Backbone | Tapped, method: type[Method]) -> Backbone:
    """Return a backbone whose feature maps can be read.

    Raises:
        UsageError: a module read through a tap, which has none.
    """
    if isinstance(backbone, Tapped):
        raise UsageError(f"method {method.name} acts on feature maps, which a tapped module does not give; use timm's")
    return backbone


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return -log p(label) per sample (SAGE, equation 7, with the sign that its print lacks), ``b k`` -> ``b``."""
    return F.cross_entropy(logits.float() if logits.element_size() < 4 else logits, label, reduction="none")


def batch_mean(values: Tensor, batch: Batch, subset: Tensor | None = None) -> Tensor:
    """Return the weighted mean over a batch of a loss that each sample, or only a subset of them, contributes to.

    Where several processes share the batch it is the mean over all of it, with its gradient, and this is where they
    meet: ``forward`` must take the same means in every step, whatever its samples are; a subset may be empty.

    Args:
        values: ``b`` losses, or ``m`` of a subset. The samples outside the subset count as zero, so that a sample's
            pull on the network does not depend on how many others in its batch have a map.
        batch: whose sample weights count; where all are zero, so is the mean.
        subset: ``m`` positions in the batch.
    """
    weight = batch.weight
    total, whole = (values * (weight if subset is None else weight[subset])).sum(), batch.total_weight
    if whole is None:
        whole = weight.sum()
    else:
        total = processes.total(total)
    return total / whole.clamp_min(torch.finfo(weight.dtype).tiny)


def guided_mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the weighted mean of ``b`` guidance losses over a batch, where samples without a map count as zero."""
    return batch_mean(torch.where(batch.has_saliency, values, torch.zeros_like(values)), batch)
