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

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.options import Options


@dataclass(frozen=True)
class Stage:
    """One of a method's training stages, passed through in turn."""

    name: str = "classify"
    """What the metrics file calls it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Training options that differ from the configuration in this stage."""


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
    guides: ClassVar[str] = "nothing"
    """What the guidance acts on: input, map, embedding, logits."""
    passes: ClassVar[int] = 1
    """Forward passes per training step."""
    Options: ClassVar[type[MethodOptions]] = CrossEntropyOptions

    def __init__(self, backbone: Backbone | Tapped, options: MethodOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss, scalars, and their ``total``, which is the one to call backward on."""
        loss = batch_mean(cross_entropy(self.backbone(batch.image).logits, batch.label), batch.weight)
        return {"total": loss, "cross_entropy": loss}

    def predict(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Return logits ``b k`` of images ``b 3 h w``; ``saliency`` is for methods that need a map at test time."""
        return self.backbone(image).logits

    def stages(self) -> tuple[Stage, ...]:
        """Return the training stages, in order."""
        return (Stage(),)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return -log p(label) per sample (SAGE, equation 7, with the sign that its print lacks), ``b k`` -> ``b``."""
    return F.cross_entropy(logits.float() if logits.element_size() < 4 else logits, label, reduction="none")


def batch_mean(values: Tensor, weight: Tensor, subset: Tensor | None = None) -> Tensor:
    """Return the weighted mean over a batch of a loss that each sample, or only a subset of them, contributes to.

    Args:
        values: ``b`` losses, or ``m`` of a subset. The samples outside the subset count as zero, so that a sample's
            pull on the network does not depend on how many others in its batch have a map.
        weight: ``b`` sample weights; where all are zero, so is the mean.
        subset: ``m`` positions in the batch.
    """
    mine = weight if subset is None else weight[subset]
    return (values * mine).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
