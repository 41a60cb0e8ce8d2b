"""SAGE: Saliency-Guided Contrastive Embeddings (Crum & Czajka, 2025, arXiv 2511.12744).

The image passes through the network in four views (``views.py``). Cross-entropy acts on the clean one; the logits of
the view that keeps the salient region are aligned with it, and those of the view that lost the salient region with the
fully degraded one; a triplet loss does the same for the embeddings (equation 8)::

    L = alpha * L_CE + (1 - alpha) * (L_SLA + L_SCE)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lookhere.backbone import Backbone, Features, Tapped, wrap
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.losses import (
    Divergence,
    TemperatureScale,
    embedding_margin,
    sage_loss,
    saliency_contrastive_embedding,
    saliency_logit_alignment,
)
from lookhere.methods.base import Method, MethodOptions, batch_mean, cross_entropy
from lookhere.passes import BatchNorm, forward_views, refusal
from lookhere.swap import draw_partners
from lookhere.views import ViewOptions, saliency_views


class SageOptions(MethodOptions):
    """Options of SAGE; symbols as in the paper."""

    name: Literal["sage"] = "sage"
    """The method."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of cross-entropy in the loss (equation 8)."""
    lambda_sla: float = Field(0.5, ge=0, le=1)
    """Share of the salient pair in the logit alignment (equation 3)."""
    lambda_sce: float = Field(0.5, ge=0, le=1)
    """Share of the salient triplet in the contrastive loss (equation 6)."""
    tau: float = Field(2.0, gt=0, le=100)
    """Softmax temperature of the logit alignment."""
    temperature_scale: TemperatureScale = "tau**2"
    """The factor that makes up for the temperature: ``tau**2`` as in distillation, ``2**tau`` as printed."""
    divergence: Divergence = "js"
    """Between softened probabilities: Jensen-Shannon, Kullback-Leibler from the anchor, or Jeffreys'."""
    margin: Literal["sample", "batch"] | Annotated[float, Field(ge=0, le=2)] = "sample"
    """The triplets' margin: each sample's cd(z, z'), the batch's mean of it, or a number."""
    detach_margin: bool = True
    """Send no gradient through the margin."""
    detach_anchor: bool = False
    """Send no gradient through the anchors, the clean and the degraded view."""
    cross_entropy_on: Literal["clean", "clean+salient_kept"] = "clean"
    """Views that must be classified: the clean one as in the paper, or the mean over it and the salient-kept one."""
    batch_norm: BatchNorm = "joint"
    """Whose statistics batch norm uses: those of all views in one pass (measured best, see docs/results.md), of each
    view in a pass of its own (the paper's words), or the latter with the running statistics left to the clean view."""
    views: ViewOptions = ViewOptions()
    """How the views are made."""
    guided_share: float = Field(1.0, gt=0, le=1)
    """Share of the samples with a map, drawn anew in each step, that get views; their terms make up for the others'."""
    guided_every: int = Field(1, ge=1, le=1000)
    """With k, give views in every k-th step of the training only, with terms k times as large."""


class Sage(Method):
    """SAGE under the contract of a method. Samples without a map add cross-entropy only, and no forward pass.

    So do samples that find no other image of the wanted class in their batch, where views are made by swapping.
    """

    name = "sage"
    paper = "Crum & Czajka, 2025"
    guides = "embedding, logits"
    passes = 4
    Options = SageOptions
    options: SageOptions

    def __init__(self, backbone: Backbone | Tapped, options: SageOptions, black: Sequence[float] | None = None) -> None:
        super().__init__(backbone, options)
        options.views.warn_if_truncated()
        if black is None and isinstance(backbone, Backbone):
            black = [-mean / std for mean, std in zip(backbone.mean, backbone.std, strict=True)]
        if black is None and options.views.degrade == "dim":
            raise UsageError('degrade = "dim" needs the value of black in the images\' normalisation: give black=…')
        self.register_buffer("black", torch.tensor(black or [0.0]).view(1, -1, 1, 1), persistent=False)
        self.black: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``total``, the terms of equation 8, and the triplets' mean margin and active share."""
        o, swaps = self.options, self.options.views.degrade == "swap"
        has_views = batch.has_saliency
        if swaps:
            partner = draw_partners(batch.label, o.views.swap_from)
            has_views = has_views & (partner >= 0)
        guided, factor = self._draw(has_views.nonzero().squeeze(1), batch.step)
        features: list[Features] = []
        if len(guided):
            image, saliency = batch.image, batch.saliency
            others = {"others": image[partner[guided]], "others_saliency": saliency[partner[guided]]} if swaps else {}
            if len(guided) < len(batch):
                image, saliency = image[guided], saliency[guided]
            views = saliency_views(image, saliency, o.views, black=self.black, **others)
            own = views if o.views.scale < 1 else views[1:]  # smaller views are compared with the smaller clean one
            clean, *features = forward_views(self.backbone, [batch.image, *own], o.batch_norm)
        else:
            clean = self.backbone(batch.image)
        whole = Features(clean.logits[guided], clean.embedding[guided], None)
        features = features or [whole] * 3  # with no sample that has views, the terms are sums over none
        features = [whole, *features][-4:]
        logits, embeddings = [f.logits for f in features], [f.embedding for f in features]

        ce = cross_entropy(clean.logits, batch.label)
        if o.cross_entropy_on == "clean+salient_kept":
            other = cross_entropy(logits[1], batch.label[guided])
            ce = ce.index_add(0, guided, factor * (other - ce[guided]) / 2)
        sla = saliency_logit_alignment(
            *logits,
            lam=o.lambda_sla,
            tau=o.tau,
            temperature_scale=o.temperature_scale,
            divergence=o.divergence,
            detach_anchor=o.detach_anchor,
            reduction="none",
        )
        sce = saliency_contrastive_embedding(
            *embeddings,
            lam=o.lambda_sce,
            margin=o.margin,
            detach_margin=o.detach_margin,
            detach_anchor=o.detach_anchor,
            reduction="none",
        )
        margin = embedding_margin(embeddings[0], embeddings[2], margin="sample" if o.margin == "batch" else o.margin)
        active = (sce.detach() > 0).float()
        sla, sce = batch_mean(factor * sla, batch, guided), batch_mean(factor * sce, batch, guided)
        ce = batch_mean(ce, batch)
        return {
            "total": sage_loss(ce, sla, sce, o.alpha),
            "cross_entropy": ce,
            "logit_alignment": sla,
            "contrastive_embedding": sce,
            "margin": margin.sum() / max(len(guided), 1),
            "active_triplets": active.sum() / max(len(guided), 1),
        }

    def _draw(self, able: Tensor, step: int) -> tuple[Tensor, float]:
        """Return which of the samples that can have views get them in a step, and the factor on their terms.

        The mean of the terms over all draws, and over ``guided_every`` steps, is that of all samples in every step.
        """
        o, whole = self.options, len(able)
        count = 0 if step % o.guided_every else max(round(o.guided_share * whole), 1)
        if count < whole:
            able = able[torch.randperm(whole, device=able.device)[:count].sort().values]
        return able, o.guided_every * whole / max(len(able), 1)

    def check_size(self, side: int) -> None:
        """Raise UsageError if the backbone cannot take the smaller views of images of ``side`` x ``side`` pixels."""
        small = self.options.views.side(side)
        if small < side and (reason := refusal(self.backbone, small)):
            raise UsageError(
                f"method.views.scale: {self.options.views.scale:g} makes views of {small} pixels, which the network "
                f"does not take ({reason}); use 1, or a backbone such as resnet50"
            )


class SAGE(nn.Module):
    """The SAGE loss for a training loop of one's own, around any classifier.

    >>> sage = SAGE(model)
    >>> loss = sage(images, saliency, labels)
    >>> loss.backward()

    The model is read, not changed: train ``model.parameters()`` and use ``model`` for inference. For data-parallel
    training wrap this module rather than the model, so that the four views are one forward pass.

    Args:
        model: maps images ``b c h w`` to logits ``b k``.
        tap: name of the layer whose output is the embedding; by default the embedding is what timm's own interface
            calls so, or the input of the last linear layer.
        black: value of black per channel in the images' normalisation; needed only to dim images for a model that is
            not timm's, whose normalisation is not known.
        options: options of ``SageOptions`` by name; ``views`` as a ``ViewOptions`` or a dictionary.

    Raises:
        pydantic.ValidationError: unknown option or value out of range.
        UsageError: no embedding can be found in the model, or a first batch whose saliency is not in [0, 1].
    """

    def __init__(
        self, model: nn.Module, tap: str | None = None, black: Sequence[float] | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.method = Sage(wrap(model, tap), SageOptions(**options), black)
        self.parts: dict[str, Tensor] = {}
        self.checked = False
        self.steps = 0

    def forward(self, images: Tensor, saliency: Tensor, labels: Tensor, has_saliency: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; ``parts`` then holds its named terms, detached.

        Args:
            images: ``b c h w`` float, normalised as the model expects.
            saliency: ``b 1 h w`` float in [0, 1], 1 = salient.
            labels: ``b`` int64.
            has_saliency: ``b`` bool, false where a sample has no map; all true by default.
        """
        if not self.checked:  # once: a wrong range is wrong from the start, and a look at values waits for the device
            low, high = (float(value) for value in saliency.detach().aminmax())
            if low < 0 or high > 1:
                raise UsageError(
                    f"saliency must lie in [0, 1], got values from {low:g} to {high:g}; divide by its maximum"
                )
            self.checked = True
        everyone = torch.ones_like(labels, dtype=torch.bool)
        parts = self.method(
            Batch(
                image=images,
                label=labels,
                saliency=saliency,
                has_saliency=everyone if has_saliency is None else has_saliency,
                weight=torch.ones_like(labels, dtype=torch.float32),
                index=torch.arange(len(labels), device=labels.device),
                step=self.steps,
            )
        )
        self.steps += 1
        self.parts = {name: value.detach() for name, value in parts.items()}
        return parts["total"]
