"""Losses between maps, against plain arithmetic and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import Tensor

from lookhere.map_losses import by_maximum, map_bce, map_dice, map_energy, map_mse, min_max, resize_map


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def each(maps: Tensor) -> list[list[float]]:
    return [one.flatten().tolist() for one in maps]


@pytest.mark.parametrize("size", [(7, 7), (3, 10), (32, 24), (60, 50)])
def test_resizing_is_that_of_pillow(size: tuple[int, int]) -> None:
    maps = draw(2, 1, 32, 24).float()
    got = resize_map(maps, size)
    for one, same in zip(maps, got, strict=True):
        expected = Image.fromarray(one[0].numpy(), "F").resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(same[0], np.asarray(expected), atol=2e-6)
    assert resize_map(maps, torch.Size((32, 24))) is maps


def test_enlarging_is_bilinear_without_the_filter_of_shrinking() -> None:
    maps = draw(2, 1, 4, 5)
    plain = torch.nn.functional.interpolate(maps, (16, 21), mode="bilinear")
    torch.testing.assert_close(resize_map(maps, (16, 21)), plain)


def test_min_max_and_by_maximum() -> None:
    maps = draw(3, 1, 5, 4) * 7 - 3
    for one, stretched, divided in zip(each(maps), each(min_max(maps)), each(by_maximum(maps)), strict=True):
        assert stretched == pytest.approx([(v - min(one)) / (max(one) - min(one)) for v in one], abs=1e-12)
        assert divided == pytest.approx([v / max(one) for v in one], abs=1e-12)
    assert torch.equal(min_max(maps).amax((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(min_max(5 * maps + 2), min_max(maps))
    torch.testing.assert_close(by_maximum(5 * maps), by_maximum(maps))


@pytest.mark.parametrize("normalise", [min_max, by_maximum])
def test_constant_maps_are_normalised_to_something_finite(normalise: Callable[[Tensor], Tensor]) -> None:
    maps = torch.stack([torch.full((1, 3, 3), v) for v in (0.0, 4.0, -2.0, 1e-12)]).requires_grad_()
    out = normalise(maps)
    expected = [0.0, 0.0, 0.0, 0.0] if normalise is min_max else [0.0, 1.0, -2.0, 1e-12]
    assert out[:, 0, 0, 0].tolist() == pytest.approx(expected)
    (out * draw(4, 1, 3, 3)).sum().backward()
    assert maps.grad.isfinite().all()
    assert float(maps.grad.abs().max()) <= 1


def test_mse_bce_and_dice_are_their_formulas() -> None:
    logits, s = draw(3, 1, 6, 5) * 8 - 4, draw(3, 1, 6, 5, seed=1)
    mse, bce, dice = map_mse(logits, s), map_bce(logits, s), map_dice(logits, s, smooth=0.5)
    for i, (y, t) in enumerate(zip(each(logits), each(s), strict=True)):
        p = [1 / (1 + math.exp(-v)) for v in y]
        pairs = list(zip(p, t, strict=True))
        assert float(mse[i]) == pytest.approx(sum((u - v) ** 2 for u, v in zip(y, t, strict=True)) / 30)
        soft = sum(-b * math.log(a) - (1 - b) * math.log(1 - a) for a, b in pairs) / 30
        assert float(bce[i]) == pytest.approx(soft)
        overlap = sum(a * b for a, b in pairs)
        assert float(dice[i]) == pytest.approx(1 - (2 * overlap + 0.5) / (sum(p) + sum(t) + 0.5))
    hard = (s > 0.5).double()
    expected = [log_loss(h, torch.tensor(y).sigmoid()) for h, y in zip(each(hard), each(logits), strict=True)]
    assert map_bce(logits, hard).tolist() == pytest.approx(expected)


def test_energy_is_the_share_of_positive_attribution_outside() -> None:
    attribution, s = draw(3, 1, 6, 5) - 0.5, draw(3, 1, 6, 5, seed=1)
    energy = map_energy(attribution, s)
    for i, (a, t) in enumerate(zip(each(attribution), each(s), strict=True)):
        inside = sum(u * v for u, v in zip(a, t, strict=True) if u > 0)
        assert float(energy[i]) == pytest.approx(1 - inside / sum(u for u in a if u > 0))
    torch.testing.assert_close(map_energy(1000 * attribution, s), energy)
    box = torch.zeros_like(s)
    box[..., :3, :2] = 1
    torch.testing.assert_close(map_energy(box * 7 - (1 - box), box), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(map_energy(1 - box, box), torch.ones(3, dtype=torch.float64))


def test_energy_of_no_positive_attribution_is_one_without_a_gradient() -> None:
    attribution = torch.tensor([0.0, -1.0, 1e-30]).view(3, 1, 1, 1).expand(3, 1, 4, 4).clone().requires_grad_()
    loss = map_energy(attribution, torch.ones(3, 1, 4, 4))
    assert loss.tolist() == pytest.approx([1, 1, 1])
    loss.sum().backward()
    assert attribution.grad.isfinite().all()
    assert float(attribution.grad[:2].abs().max()) == 0


@pytest.mark.parametrize("function", [map_mse, map_bce, map_dice, map_energy])
def test_gradients_and_one_value_per_sample(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    maps, s = (draw(3, 1, 4, 3) - 0.5).requires_grad_(), draw(3, 1, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda m: function(m, s), maps)
    assert torch.autograd.gradcheck(lambda m: function(min_max(m), s), maps)
    assert torch.autograd.gradcheck(lambda m: function(by_maximum(m), s), maps)
    values = function(maps, s)
    torch.testing.assert_close(values[1:2], function(maps[1:2], s[1:2]))
    half = function(maps.bfloat16(), s.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), values, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("function", [map_bce, map_dice])
@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_and_empty_maps_are_finite(function: Callable[[Tensor, Tensor], Tensor], value: float) -> None:
    logits = torch.full((2, 1, 3, 3), value, requires_grad=True)
    loss = function(logits, torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)]))
    right, wrong = (0, 1) if value < 0 else (1, 0)
    assert float(loss[right]) == pytest.approx(0, abs=1e-6)
    assert float(loss[wrong]) > 0.85
    loss.sum().backward()
    assert logits.grad.isfinite().all()
