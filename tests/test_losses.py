"""Losses: against a literal transcription of the equations, SciPy, and the properties that the paper's text implies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

import transcription
from lookhere.losses import (
    cosine_distance,
    embedding_margin,
    jeffreys,
    jensen_shannon,
    kullback_leibler,
    sage_loss,
    saliency_contrastive_embedding,
    saliency_logit_alignment,
)


def random_views(b: int, d: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(b, d, generator=generator, dtype=torch.float64) for _ in range(4)]


CASES = list(
    itertools.product(["js", "kl", "jeffreys"], ["tau**2", "2**tau"], [1.0, 2.0, 3.0], ["sample", "batch", 0.3])
)


@pytest.mark.parametrize(("divergence", "scale", "tau", "margin"), CASES)
def test_equations_1_to_8(divergence: str, scale: str, tau: float, margin: str | float) -> None:
    logits, embeddings, labels = random_views(5, 3, scale=3), random_views(5, 8, seed=1), [0, 2, 1, 1, 0]
    alpha, lambda_sla, lambda_sce = 0.3, 0.7, 0.2
    expected = transcription.sage(
        [v.tolist() for v in logits],
        [v.tolist() for v in embeddings],
        labels,
        alpha,
        lambda_sla,
        lambda_sce,
        tau,
        scale,
        divergence,
        margin,
    )
    sla = saliency_logit_alignment(*logits, lam=lambda_sla, tau=tau, temperature_scale=scale, divergence=divergence)
    sce = saliency_contrastive_embedding(*embeddings, lam=lambda_sce, margin=margin)
    ce = torch.nn.functional.cross_entropy(logits[0], torch.tensor(labels))
    got = (sage_loss(ce, sla, sce, alpha), ce, sla, sce)
    assert [float(value) for value in got] == pytest.approx(expected, abs=1e-9)


def test_jensen_shannon_is_scipys_and_within_its_bounds() -> None:
    p, q = (torch.softmax(v, -1) for v in random_views(50, 4, scale=5)[:2])
    ours = jensen_shannon(p.log(), q.log())
    torch.testing.assert_close(ours, torch.from_numpy(jensenshannon(p.numpy(), q.numpy(), axis=1) ** 2))
    torch.testing.assert_close(ours, jensen_shannon(q.log(), p.log()))
    half = jensen_shannon(p.log().bfloat16(), q.log().bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), ours, atol=0.02, rtol=0.02)
    assert float(ours.min()) > 0
    assert float(ours.max()) < math.log(2)
    torch.testing.assert_close(
        jeffreys(p.log(), q.log()), kullback_leibler(p.log(), q.log()) + kullback_leibler(q.log(), p.log())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", ["js", "kl", "jeffreys"])
def test_hard_inputs_give_finite_losses_and_gradients(dtype: torch.dtype, divergence: str) -> None:
    extreme = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
    logits = [x.to(dtype).requires_grad_() for x in (extreme, -extreme, extreme, extreme.flip(0))]
    z = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [1e-4, 0.0, 0.0]])
    embeddings = [x.to(dtype).requires_grad_() for x in (z, z.clone(), torch.zeros_like(z), z.flip(0))]
    loss = saliency_logit_alignment(*logits, divergence=divergence) + saliency_contrastive_embedding(*embeddings)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(x.grad).all() for x in [*logits, *embeddings])


def test_opposite_certain_logits_are_ln2_apart() -> None:
    y = torch.tensor([[1e4, -1e4]])
    torch.testing.assert_close(jensen_shannon(y.log_softmax(-1), (-y).log_softmax(-1)), torch.tensor([math.log(2)]))


def test_identical_views_cost_nothing_and_stay_still() -> None:
    y, z = torch.randn(4, 2).requires_grad_(), torch.randn(4, 6).requires_grad_()
    loss = saliency_logit_alignment(y, y, y, y) + saliency_contrastive_embedding(z, z, z, z)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(z.grad).all()
    assert float(y.grad.abs().max()) < 1e-6


def test_the_intended_solution_costs_nothing_with_a_margin_per_sample_but_not_per_batch() -> None:
    clean, degraded = random_views(6, 8)[:2]
    solved = (clean, clean.clone(), degraded, degraded.clone())
    assert float(saliency_contrastive_embedding(*solved)) == pytest.approx(0, abs=1e-12)
    assert float(saliency_contrastive_embedding(*solved, margin="batch")) > 1e-3


def test_losses_are_differentiable() -> None:
    logits = [v.requires_grad_() for v in random_views(3, 3)]
    embeddings = [v.requires_grad_() for v in random_views(3, 5, seed=2)]
    for divergence in ("js", "kl", "jeffreys"):
        assert torch.autograd.gradcheck(
            lambda *y, d=divergence: saliency_logit_alignment(*y, divergence=d, reduction="none"), logits
        )
    for margin in ("sample", "batch", 0.3):
        assert torch.autograd.gradcheck(
            lambda *z, m=margin: saliency_contrastive_embedding(*z, margin=m, detach_margin=False, reduction="none"),
            embeddings,
        )


def test_what_is_detached_gets_no_gradient() -> None:
    z = [v.requires_grad_() for v in random_views(3, 5)]
    embedding_margin(z[0], z[2], detach=False).sum().backward()
    attached = z[0].grad.clone()
    assert float(attached.abs().max()) > 0
    assert not embedding_margin(z[0], z[2]).requires_grad
    y = [v.requires_grad_() for v in random_views(3, 2)]
    z = [v.requires_grad_() for v in random_views(3, 5)]
    loss = saliency_logit_alignment(*y, detach_anchor=True) + saliency_contrastive_embedding(*z, detach_anchor=True)
    loss.backward()
    assert [v.grad is None for v in y] == [True, False, True, False]
    assert [v.grad is None for v in z] == [True, False, True, False]


def test_a_batch_is_the_mean_of_its_samples_and_their_order_does_not_matter() -> None:
    logits, embeddings = random_views(7, 3), random_views(7, 5, seed=3)
    for loss, views in ((saliency_logit_alignment, logits), (saliency_contrastive_embedding, embeddings)):
        each = loss(*views, reduction="none")
        assert each.shape == (7,)
        torch.testing.assert_close(each.mean(), loss(*views))
        torch.testing.assert_close(each.flip(0), loss(*(v.flip(0) for v in views), reduction="none"))
        torch.testing.assert_close(each[:2], loss(*(v[:2] for v in views), reduction="none"))


def test_embeddings_are_compared_by_direction_and_logits_up_to_a_shift() -> None:
    logits, embeddings = random_views(4, 3), random_views(4, 5)
    scaled = [v * s for v, s in zip(embeddings, (3.0, 0.5, 7.0, 2.0), strict=True)]
    torch.testing.assert_close(saliency_contrastive_embedding(*embeddings), saliency_contrastive_embedding(*scaled))
    shifted = [v + s for v, s in zip(logits, (3.0, -5.0, 7.0, 2.0), strict=True)]
    torch.testing.assert_close(saliency_logit_alignment(*logits), saliency_logit_alignment(*shifted))


def test_cosine_distance_of_known_vectors() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(cosine_distance(a, b), torch.tensor([0.0, 1.0, 2.0, 1 - math.sqrt(0.5)]))
