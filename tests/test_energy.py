"""Energy against captum's attributions, and its gradient against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from captum.attr import InputXGradient, LayerAttribution, LayerGradCam
from torch import Tensor, nn

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.methods.energy import Energy, EnergyOptions
from small_batch import small_batch


def make_batch(b: int = 4, maps: int = 4, size: int = 64) -> Batch:
    return small_batch(b, maps, size)


def energy(**options: Any) -> Energy:
    torch.manual_seed(0)
    return Energy(Backbone(timm.create_model("test_resnet", num_classes=3).double()), EnergyOptions(**options)).eval()


def outside(attribution: Tensor, region: Tensor) -> Tensor:
    """Return the share of positive attribution outside, sample by sample; all of it where there is none."""
    shares = []
    for a, s in zip(attribution[:, 0], region[:, 0], strict=True):
        positive = [(float(v), float(t)) for v, t in zip(a.flatten(), s.flatten(), strict=True) if v > 0]
        shares.append(1 - sum(v * t for v, t in positive) / sum(v for v, _ in positive) if positive else 1.0)
    assert min(shares) < 1
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("attribution", ["grad-cam", "input-gradient"])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_the_loss_is_its_formula_of_captums_attributions(attribution: str, threshold: float) -> None:
    method, batch = energy(attribution=attribution, threshold=threshold, lam=2.5), make_batch(maps=3)
    model = method.backbone.model
    if attribution == "grad-cam":
        cam = LayerGradCam(model, model.layer4).attribute(batch.image, batch.label, relu_attributions=True)
        a = LayerAttribution.interpolate(cam, (64, 64), interpolate_mode="bilinear")
    else:
        a = InputXGradient(model).attribute(batch.image.clone().requires_grad_(), batch.label).sum(1, keepdim=True)
    region = (batch.saliency > threshold).double() if threshold else batch.saliency
    expected = outside(a[:3].detach(), region[:3]).sum() / 4
    parts = method(batch)
    torch.testing.assert_close(parts["energy_outside"], expected)
    ce = nn.functional.cross_entropy(model(batch.image), batch.label)
    torch.testing.assert_close(parts["total"], ce + 2.5 * expected)


@pytest.mark.parametrize("attribution", ["grad-cam", "input-gradient"])
def test_the_gradient_is_that_of_finite_differences(attribution: str) -> None:
    """With a smooth activation, because a second derivative of ReLU is zero where a difference may not be."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).double().eval()
    method, batch = Energy(Backbone(model), EnergyOptions(attribution=attribution, lam=5.0)), make_batch(2)
    method(batch)["total"].backward()
    parameters = [p for p in method.parameters() if p.grad is not None]
    assert parameters[0].grad.abs().max() > 0
    ways = [torch.randn_like(p) * p.detach().abs().mean() for p in parameters]
    slope = sum(float((p.grad * way).sum()) for p, way in zip(parameters, ways, strict=True))
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p.add_(step * way)
        values.append(float(method(batch)["total"].detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4)


def test_the_energy_does_not_depend_on_the_scale_of_the_attribution() -> None:
    method, batch = energy(), make_batch()
    before = method(batch)["energy_outside"]
    with torch.no_grad():
        method.backbone.model.fc.weight.mul_(50)
    torch.testing.assert_close(method(batch)["energy_outside"], before)


def test_training_moves_the_attribution_into_the_region() -> None:
    batch = make_batch(8)
    corner = torch.zeros_like(batch.saliency)
    corner[..., :32, :32] = 1
    shown = batch.image + 2 * corner * (batch.label.view(-1, 1, 1, 1) - 1)  # the class is a brightness in the corner
    batch, method = replace(batch, image=shown, saliency=corner), energy().train()
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    shares = []
    for _ in range(20):
        parts = method(batch)
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
        shares.append(float(parts["energy_outside"].detach()))
    assert shares[-1] < 0.6 * shares[0]


@pytest.mark.parametrize("attribution", ["grad-cam", "input-gradient"])
def test_no_map_no_attribution_and_an_image_of_zeros_are_finite(attribution: str) -> None:
    method, batch = energy(attribution=attribution), make_batch()
    none = method(replace(batch, has_saliency=torch.zeros(4, dtype=torch.bool)))
    assert float(none["energy_outside"]) == 0
    torch.testing.assert_close(none["total"], none["cross_entropy"])
    nn.init.zeros_(method.backbone.model.fc.weight)
    for image in (batch.image, torch.zeros_like(batch.image)):
        parts = method(replace(batch, image=image))
        assert float(parts["energy_outside"]) == 1
        method.zero_grad()
        parts["total"].backward()
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert not batch.image.requires_grad


def test_only_grad_cam_needs_a_feature_map() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    with pytest.raises(UsageError, match="energy acts on feature maps"):
        Energy(Tapped(model), EnergyOptions())
    parts = Energy(Tapped(model), EnergyOptions(attribution="input-gradient"))(make_batch())
    parts["total"].backward()
    assert float(model[0].weight.grad.abs().max()) > 0


def test_a_network_of_tokens_is_refused() -> None:
    method = Energy(Backbone(timm.create_model("test_vit", num_classes=3, img_size=64).double()), EnergyOptions())
    with pytest.raises(UsageError, match="this network gives tokens"):
        method(make_batch(2))
