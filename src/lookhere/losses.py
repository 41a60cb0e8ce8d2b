"""The paper's equations as pure functions of tensors.

Each function takes what the network made of the four views (see ``views.Views``) and returns one value per sample, or
their mean. All arithmetic is in float32 at least, in log space, and finite with finite gradients for identical views,
zero embeddings and logits of +-1e4.

Source: Crum & Czajka, "SAGE: Saliency-Guided Contrastive Embeddings", 2025 (arXiv 2511.12744), equations 1 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lookhere import processes

Divergence = Literal["js", "kl", "jeffreys"]
Margin = Literal["sample", "batch"] | float
TemperatureScale = Literal["tau**2", "2**tau"]
Reduction = Literal["mean", "none"]

Logits = Float[Tensor, "b k"]
LogProbabilities = Float[Tensor, "b k"]
Embeddings = Float[Tensor, "b d"]
PerSample = Float[Tensor, " b"]

# A cosine's gradient at a zero embedding is 1 / eps: this keeps it finite in float16 too (torch's default is 1e-8).
COSINE_EPS = 1e-4


def kullback_leibler(log_p: LogProbabilities, log_q: LogProbabilities) -> PerSample:
    """Return KL(p || q) in nats, ``b k`` log-probabilities -> ``b``."""
    log_p, log_q = wide(log_p), wide(log_q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jensen_shannon(log_p: LogProbabilities, log_q: LogProbabilities) -> PerSample:
    """Return the Jensen-Shannon divergence in nats, within [0, ln 2] (equation 1).

    Args:
        log_p, log_q: ``b k`` log-probabilities, such as ``logits.log_softmax(-1)``; not logits.

    Returns:
        ``b``.
    """
    log_p, log_q = wide(log_p), wide(log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (kullback_leibler(log_p, log_m) + kullback_leibler(log_q, log_m))


def jeffreys(log_p: LogProbabilities, log_q: LogProbabilities) -> PerSample:
    """Return Jeffreys' divergence KL(p || q) + KL(q || p) in nats, ``b k`` log-probabilities -> ``b``."""
    return kullback_leibler(log_p, log_q) + kullback_leibler(log_q, log_p)


DIVERGENCES: dict[str, Callable[[LogProbabilities, LogProbabilities], PerSample]] = {
    "js": jensen_shannon,
    "kl": kullback_leibler,
    "jeffreys": jeffreys,
}


def saliency_logit_alignment(
    clean: Logits,
    kept: Logits,
    degraded: Logits,
    removed: Logits,
    *,
    lam: float = 0.5,
    tau: float = 2.0,
    temperature_scale: TemperatureScale = "tau**2",
    divergence: Divergence = "js",
    detach_anchor: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return L_SLA (equation 3): logits of ``kept`` should follow ``clean``, those of ``removed`` follow ``degraded``.

    Args:
        clean, kept, degraded, removed: ``b k`` logits of the four views.
        lam: lambda, the share of the salient pair.
        tau: temperature; softmax(logits / tau).
        temperature_scale: the factor that makes up for the temperature. The paper prints ``2**tau`` and cites
            distillation, which uses ``tau**2``; both are 4 at the paper's tau = 2.
        divergence: Jensen-Shannon as in the paper, or KL(anchor || other), or Jeffreys'.
        detach_anchor: send no gradient through ``clean`` and ``degraded``.
        reduction: mean over the batch, or one value per sample.

    Returns:
        A scalar, or ``b``; in nats times the temperature's factor.
    """
    diverge = DIVERGENCES[divergence]
    scale = 2.0**tau if temperature_scale == "2**tau" else tau**2

    def pair(anchor: Tensor, other: Tensor) -> Tensor:
        anchor = anchor.detach() if detach_anchor else anchor
        return diverge(*(F.log_softmax(wide(y) / tau, dim=-1) for y in (anchor, other)))

    loss = scale * (lam * pair(clean, kept) + (1 - lam) * pair(degraded, removed))
    return loss.mean() if reduction == "mean" else loss


def cosine_distance(a: Embeddings, b: Embeddings) -> PerSample:
    """Return 1 - cosine similarity, within [0, 2] up to rounding, ``b d`` embeddings -> ``b``."""
    return 1 - F.cosine_similarity(wide(a), wide(b), dim=-1, eps=COSINE_EPS)


def triplet(anchor: Embeddings, positive: Embeddings, negative: Embeddings, margin: PerSample | float) -> PerSample:
    """Return the cosine triplet loss max(cd(a, p) - cd(a, n) + margin, 0) (equations 4 and 5), ``b d`` -> ``b``."""
    return (cosine_distance(anchor, positive) - cosine_distance(anchor, negative) + margin).clamp_min(0)


def embedding_margin(
    clean: Embeddings, degraded: Embeddings, *, margin: Margin = "sample", detach: bool = True
) -> PerSample:
    """Return the margin mu = cd(z, z') between the clean and the degraded embedding (``b d``), one per sample (``b``).

    Args:
        clean, degraded: ``b d`` embeddings.
        margin: each sample's own distance, the batch's mean distance, or a fixed number. Where processes share a batch,
            the mean is over all of it.
        detach: treat the margin as a constant. With a gradient the loss can reach zero by shrinking the margin, that
            is by ignoring the degradation.
    """
    if isinstance(margin, int | float):
        return clean.new_full((len(clean),), float(margin), dtype=wide(clean).dtype)
    distance = cosine_distance(clean, degraded)
    distance = distance.detach() if detach else distance
    return distance if margin == "sample" else processes.mean(distance).expand_as(distance)


def saliency_contrastive_embedding(
    clean: Embeddings,
    kept: Embeddings,
    degraded: Embeddings,
    removed: Embeddings,
    *,
    lam: float = 0.5,
    margin: Margin = "sample",
    detach_margin: bool = True,
    detach_anchor: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return L_SCE (equation 6): ``clean`` is drawn to ``kept`` and away from ``removed``, ``degraded`` the reverse.

    Args:
        clean, kept, degraded, removed: ``b d`` embeddings of the four views.
        lam: lambda, the share of the salient triplet.
        margin, detach_margin: see ``embedding_margin``.
        detach_anchor: send no gradient through the anchors ``clean`` and ``degraded``.
        reduction: mean over the batch, or one value per sample.

    Returns:
        A scalar, or ``b``; within [0, 4].
    """
    mu = embedding_margin(clean, degraded, margin=margin, detach=detach_margin)
    if detach_anchor:
        clean, degraded = clean.detach(), degraded.detach()
    loss = lam * triplet(clean, kept, removed, mu) + (1 - lam) * triplet(degraded, removed, kept, mu)
    return loss.mean() if reduction == "mean" else loss


def sage_loss(
    cross_entropy: Tensor, logit_alignment: Tensor, contrastive_embedding: Tensor, alpha: float = 0.5
) -> Tensor:
    """Return L_SAGE = alpha * L_CE + (1 - alpha) * (L_SLA + L_SCE) (equation 8)."""
    return alpha * cross_entropy + (1 - alpha) * (logit_alignment + contrastive_embedding)


def wide(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32: distances between near-identical views need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
