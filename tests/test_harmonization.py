"""Harmonization against a transcription in NumPy, gradients by differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import transcription
from lookhere.backbone import Tapped
from lookhere.methods.harmonization import Harmonization, HarmonizationOptions, pyramid_difference
from test_sage import make_batch, network

Map = NDArray[np.float64]


def harmonization(model: nn.Module, **options: Any) -> Harmonization:
    return Harmonization(Tapped(model), HarmonizationOptions(**options))


@torch.no_grad()
def differences(model: nn.Module, images: Tensor, label: Tensor) -> NDArray[np.float64]:
    """Return the channel mean of d f_y / dx of each image by central differences."""
    out = np.zeros(images.shape)
    rows = torch.arange(len(images))
    for c, y, x in np.ndindex(*images.shape[1:]):
        step = torch.zeros_like(images)
        step[:, c, y, x] = 1e-5
        out[:, c, y, x] = ((model(images + step) - model(images - step))[rows, label] / 2e-5).numpy()
    return out.mean(1)


def cut(a: Map) -> Map:
    return np.maximum((a - a.mean()) / (a.std() + 1e-5), 0)


def halve(a: Map) -> Map:
    padded, kernel = np.pad(a, 2, mode="edge"), np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    h, w = a.shape
    return np.array([[(padded[y : y + 5, x : x + 5] * kernel).sum() for x in range(0, w, 2)] for y in range(0, h, 2)])


def difference(gradient: Map, saliency: Map, levels: int) -> float:
    ours, theirs = cut(gradient), cut(saliency)
    theirs = theirs / theirs.max() * ours.max()
    errors = []
    for _ in range(levels):
        errors.append(((ours - theirs) ** 2).mean())
        ours, theirs = halve(ours), halve(theirs)
    return float(np.mean(errors))


@pytest.mark.parametrize(("levels", "smoothing"), [(5, 0.1), (1, 0.0), (3, 0.4)])
def test_the_loss_is_the_equation(levels: int, smoothing: float) -> None:
    model, batch = network(norm=False), make_batch(4, maps=3)
    parts = harmonization(model, lam=0.3, levels=levels, label_smoothing=smoothing)(batch)
    gradient = differences(model, batch.image, batch.label)
    maps = sum(difference(gradient[i], batch.saliency[i, 0].numpy(), levels) for i in range(3)) / 4
    ce = 0.0
    for y, label in zip(model(batch.image).tolist(), batch.label.tolist(), strict=True):
        logs = [math.log(p) for p in transcription.softmax(y, 1.0)]
        ce -= ((1 - smoothing) * logs[label] + smoothing * sum(logs) / 3) / 4
    assert float(parts["map_difference"]) == pytest.approx(maps, rel=1e-5)
    assert float(parts["cross_entropy"]) == pytest.approx(ce)
    assert float(parts["total"]) == pytest.approx(ce + 0.3 * maps, rel=1e-5)


def test_a_map_of_odd_size_and_levels_down_to_one_pixel() -> None:
    torch.manual_seed(0)
    gradient, saliency = torch.randn(2, 1, 13, 7, dtype=torch.float64), torch.rand(2, 1, 13, 7, dtype=torch.float64)
    found = pyramid_difference(gradient, saliency, 6)
    expected = [difference(g[0].numpy(), s[0].numpy(), 6) for g, s in zip(gradient, saliency, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_scale_of_the_gradient_does_not_matter_and_the_peak_has_no_gradient() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    saliency = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    once, twice = (pyramid_difference(k * gradient, saliency, 4) for k in (1e3, 2e3))
    torch.testing.assert_close(once, twice, rtol=1e-6, atol=0)
    assert (pyramid_difference(saliency, saliency, 4) < 1e-8).all()

    def fixed_peak(values: Tensor) -> Tensor:  # the same loss with the peak as a number
        ours = ((values - values.mean()) / (values.std(correction=0) + 1e-5)).relu()
        theirs = torch.from_numpy(cut(saliency[0, 0].numpy()))
        return (ours - theirs / theirs.max() * peak).square().mean()

    peak = float(cut(gradient[0, 0].numpy()).max())
    one = gradient[0, 0].clone().requires_grad_()
    expected = torch.autograd.grad(fixed_peak(one), one)[0]
    other = gradient[:1].clone().requires_grad_()
    found = torch.autograd.grad(pyramid_difference(other, saliency[:1], 1).sum(), other)[0]
    torch.testing.assert_close(found[0, 0], expected)


def test_constant_maps_and_networks_are_finite() -> None:
    flat, map_ = torch.zeros(2, 1, 8, 8, requires_grad=True), torch.rand(2, 1, 8, 8)
    loss = pyramid_difference(flat, map_, 5)
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert flat.grad.isfinite().all()
    assert pyramid_difference(map_, torch.ones(2, 1, 8, 8), 5).isfinite().all()
    model = network()
    nn.init.zeros_(model[-1].weight)  # no gradient reaches the image
    parts = harmonization(model)(make_batch(4))
    parts["total"].backward()
    assert float(parts["map_difference"]) == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert float(harmonization(network())(make_batch(4, maps=0))["map_difference"]) == 0
