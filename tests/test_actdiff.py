"""ActDiff: what the shuffle keeps, and the loss sample by sample."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

import transcription
from lookhere.backbone import Tapped
from lookhere.methods.actdiff import ActDiff, ActDiffOptions, shuffle_outside
from test_sage import make_batch, network


def actdiff(model: torch.nn.Module, **options: Any) -> ActDiff:
    return ActDiff(Tapped(model), ActDiffOptions(**options))


def pixels(image: torch.Tensor, where: torch.Tensor) -> list[tuple[float, ...]]:
    """Return the pixels of one image there, each with all of its channels, in their order."""
    return [tuple(pixel) for pixel in image[:, where].T.tolist()]


def test_pixels_outside_are_permuted_whole_and_those_inside_stay() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 7, 9)
    images[3] = images[2]
    inside = torch.rand(4, 1, 7, 9) > 0.6
    inside[3] = inside[2]
    shuffled = shuffle_outside(images, inside)
    assert shuffled.shape == images.shape
    for before, after, mask in zip(images, shuffled, inside[:, 0], strict=True):
        assert torch.equal(after[:, mask], before[:, mask])
        assert pixels(after, ~mask) != pixels(before, ~mask)
        assert sorted(pixels(after, ~mask)) == sorted(pixels(before, ~mask))
    assert not torch.equal(shuffled[2], shuffled[3])  # one permutation each
    assert torch.equal(shuffle_outside(images, torch.ones_like(inside)), images)
    everywhere = shuffle_outside(images, torch.zeros_like(inside))
    assert sorted(pixels(everywhere[0], torch.ones(7, 9, dtype=torch.bool))) == sorted(
        pixels(images[0], torch.ones(7, 9, dtype=torch.bool))
    )


def test_every_permutation_is_as_likely() -> None:
    torch.manual_seed(0)
    image = torch.arange(4.0).view(1, 1, 2, 2).expand(6000, 1, 2, 2)
    inside = torch.tensor([[False, False], [True, False]]).expand(6000, 1, 2, 2)
    found, counts = shuffle_outside(image, inside).flatten(1).unique(dim=0, return_counts=True)
    assert found.shape == (6, 4)
    assert all(abs(count - 1000) < 150 for count in counts.tolist())  # five standard deviations


def test_the_loss_is_the_equation() -> None:
    model, batch = network(norm=False), make_batch(6, maps=4)
    weight = [1.0, 0.0, 3.0, 0.5, 2.0, 1.0]
    batch = dataclasses.replace(batch, weight=torch.tensor(weight, dtype=torch.float64))
    given: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, images, __: given.append(images[0]))
    parts = actdiff(model, lam=0.7, threshold=0.3, batch_norm="per_view")(batch)
    clean, shuffled = given
    assert len(shuffled) == 4
    inside = batch.saliency[:4, 0] > 0.3
    for i in range(4):
        assert torch.equal(shuffled[i][:, inside[i]], batch.image[i][:, inside[i]])
        assert not torch.equal(shuffled[i], batch.image[i])
    z, z_shuffled = (model[:-1](images).tolist() for images in (clean, shuffled))
    distance = sum(weight[i] * math.dist(z[i], z_shuffled[i]) for i in range(4)) / 7.5
    logits = model(clean).tolist()
    ce = sum(weight[i] * transcription.xent(logits[i], int(batch.label[i])) for i in range(6)) / 7.5
    assert float(parts["activation_difference"]) == pytest.approx(distance)
    assert float(parts["cross_entropy"]) == pytest.approx(ce)
    assert float(parts["total"]) == pytest.approx(ce + 0.7 * distance)


def test_the_gradient_flows_through_both_passes() -> None:
    model, batch = network(norm=False), make_batch(4)
    given: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, images, __: given.append(images[0]))
    parts = actdiff(model, batch_norm="per_view")(batch)
    weight = model[0].weight
    found = torch.autograd.grad(parts["activation_difference"], weight, retain_graph=True)[0]
    z, z_shuffled = (model[:-1](images) for images in given[:2])
    both = torch.autograd.grad((z - z_shuffled).norm(dim=1).mean(), weight, retain_graph=True)[0]
    one = torch.autograd.grad((z - z_shuffled.detach()).norm(dim=1).mean(), weight)[0]
    torch.testing.assert_close(found, both)
    assert not torch.allclose(both, one)


def test_the_released_variant_never_multiplies() -> None:
    model, batch = network(norm=False), make_batch(4)
    totals = {}
    for variant in ("paper", "released"):
        for lam in (0.0, 1.0, 5.0):
            torch.manual_seed(0)
            parts = actdiff(model, lam=lam, variant=variant)(batch)
            totals[variant, lam] = float(parts["total"] - parts["cross_entropy"])
    assert totals["paper", 0.0] == totals["released", 0.0] == 0
    assert totals["released", 5.0] == totals["released", 1.0] == totals["paper", 1.0] > 0
    assert totals["paper", 5.0] == pytest.approx(5 * totals["paper", 1.0])


def test_nothing_to_shuffle_and_no_map_are_finite() -> None:
    model, batch = network(), make_batch(4)
    covered = dataclasses.replace(batch, saliency=torch.ones_like(batch.saliency))
    for each in (covered, make_batch(4, maps=0)):
        model.zero_grad()
        parts = actdiff(model)(each)
        parts["total"].backward()
        assert float(parts["activation_difference"]) == 0
        assert all(p.grad.isfinite().all() for p in model.parameters())
