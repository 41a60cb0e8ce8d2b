"""CYBORG against a transcription in plain arithmetic, and the tensor that the released code reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.methods.cyborg import Cyborg, CyborgOptions


def make_batch(b: int = 4, size: int = 96) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image=torch.randn(b, 3, size, size, generator=generator, dtype=torch.float64),
        label=torch.arange(b) % 3,
        saliency=torch.rand(b, 1, size, size, generator=generator, dtype=torch.float64),
        has_saliency=torch.ones(b, dtype=torch.bool),
        weight=torch.ones(b, dtype=torch.float64),
        index=torch.arange(b),
    )


def cyborg(name: str = "test_resnet", **options: Any) -> Cyborg:
    torch.manual_seed(0)
    method = Cyborg(Backbone(timm.create_model(name, num_classes=3).double()), CyborgOptions(**options))
    nn.init.normal_(method.backbone.model.get_classifier().weight)  # so that logits differ
    return method


def stretch(values: np.ndarray) -> np.ndarray:
    low, high = min(values.flat), max(values.flat)
    return (values - low) / (high - low)


def transcribed(logits: Tensor, maps: Tensor, weight: Tensor, batch: Batch, which: list[int]) -> tuple[float, float]:
    """Return cross-entropy and map loss, pixel by pixel, with Pillow's resizing as in the released code's loader."""
    ce, mse = 0.0, 0.0
    for i, y in enumerate(logits.tolist()):
        ce += math.log(sum(math.exp(v) for v in y)) - y[int(batch.label[i])]
        f, w = maps[i].detach().numpy(), weight[which[i]].tolist()
        cam = np.array([[sum(a * f[k, r, c] for k, a in enumerate(w)) for c in range(3)] for r in range(3)])
        human = Image.fromarray(batch.saliency[i, 0].float().numpy(), "F").resize((3, 3), Image.Resampling.BILINEAR)
        difference = stretch(cam) - stretch(np.asarray(human, dtype=np.float64))
        mse += sum(v * v for v in difference.flat) / 9
    return ce / len(logits), mse / len(logits)


@pytest.mark.parametrize("cam_class", ["predicted", "true"])
def test_the_loss_is_its_formula(cam_class: str) -> None:
    method, batch = cyborg(alpha=0.3, cam_class=cam_class), make_batch()
    parts = method(batch)
    features = method.backbone(batch.image)
    predicted = features.logits.argmax(1).tolist()
    assert predicted != batch.label.tolist()
    which = predicted if cam_class == "predicted" else batch.label.tolist()
    weight = method.backbone.model.fc.weight
    ce, mse = transcribed(features.logits, features.feature_map, weight, batch, which)
    assert float(parts["cross_entropy"]) == pytest.approx(ce, rel=1e-9)
    assert float(parts["map_mse"]) == pytest.approx(mse, rel=1e-5)  # Pillow resizes in float32
    assert float(parts["total"]) == pytest.approx(0.3 * ce + 0.7 * mse, rel=1e-5)


def gradient_of(loss: Tensor, method: Cyborg) -> Tensor:
    found = torch.autograd.grad(loss, list(method.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def test_the_classifiers_weights_are_guided_too() -> None:
    method = cyborg(alpha=0.0)
    method(make_batch())["total"].backward()
    assert float(method.backbone.model.fc.weight.grad.abs().max()) > 0
    assert method.backbone.model.fc.bias.grad is None or not method.backbone.model.fc.bias.grad.any()


@pytest.mark.parametrize("detach", [False, True])
def test_dynamic_alpha_is_that_of_viser_and_may_turn_cross_entropy_round(detach: bool) -> None:
    method, batch = cyborg(alpha="dynamic", detach_alpha=detach), make_batch()
    with torch.no_grad():  # logits that fit, so that the maps' term is the larger one
        method.backbone.model.fc.weight.mul_(1e-3)
        method.backbone.model.fc.bias.copy_(torch.tensor([6.0, 0.0, 0.0]))
    parts = method(replace(batch, label=torch.zeros_like(batch.label)))
    ce, mse = float(parts["cross_entropy"]), float(parts["map_mse"])
    assert mse > (1 + 2**0.5) * ce
    assert float(parts["total"]) == pytest.approx((ce**2 + mse**2) / (ce + mse), rel=1e-6)
    assert float(parts["alpha"]) == pytest.approx(ce / (ce + mse), rel=1e-6)
    share = ce / (ce + mse)
    on_ce = share if detach else 1 - 2 * (1 - share) ** 2  # the latter is negative: cross-entropy is driven up
    on_mse = 1 - share if detach else 1 - 2 * share**2
    assert (on_ce > 0) == detach
    got = gradient_of(parts["total"], method)
    by_ce, by_mse = (gradient_of(parts[part], method) for part in ("cross_entropy", "map_mse"))
    torch.testing.assert_close(got, on_ce * by_ce + on_mse * by_mse, rtol=1e-5, atol=1e-6 * float(got.abs().max()))


def spatial_mean(method: Cyborg, source: Tensor) -> Tensor:
    classifier = method.backbone.model.get_classifier()
    return method.backbone.class_activation_map(source).mean((2, 3)) + classifier.bias


@pytest.mark.parametrize(
    ("name", "convolution"),
    [
        ("resnet50", "layer4.2.conv3"),
        ("resnet18", "layer4.1.conv2"),
        ("test_efficientnet", "conv_head"),
        ("densenet121", None),
    ],
)
def test_released_reads_the_tensor_of_the_released_code(name: str, convolution: str | None) -> None:
    method, batch = cyborg(name, variant="released"), make_batch(3)
    model = method.backbone.model.eval()
    seen: list[Tensor] = []
    if convolution:
        model.get_submodule(convolution).register_forward_hook(lambda _, __, out: seen.append(out.clone()))
        features = method.backbone(batch.image)
    else:  # what torchvision's densenet gives as features: its head applies the last ReLU
        features = method.backbone(batch.image)
        relu, model.features.norm5.act = model.features.norm5.act, nn.Identity()
        seen.append(model.forward_features(batch.image))
        model.features.norm5.act = relu
        torch.testing.assert_close(seen[0].relu(), features.feature_map)
    weight = model.get_classifier().weight
    which = features.logits.argmax(1).tolist()
    parts = method(batch)
    _, mse = transcribed(features.logits, seen[0], weight, batch, which)
    _, of_the_paper = transcribed(features.logits, features.feature_map, weight, batch, which)
    assert float(parts["map_mse"]) == pytest.approx(mse, rel=1e-5)
    assert abs(mse - of_the_paper) > 1e-3
    # The identity of class activation maps holds for the map that is pooled, and for the released one it does not.
    torch.testing.assert_close(spatial_mean(method, features.feature_map), features.logits)
    assert float((spatial_mean(method, seen[0]) - features.logits).abs().max()) > 1e-2
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_networks_without_a_released_form_or_a_feature_map_are_refused() -> None:
    with pytest.raises(UsageError, match='ResNet, DenseNet and EfficientNet, not SwinTransformer; take variant = "pa'):
        cyborg("swin_tiny_patch4_window7_224", variant="released")
    with pytest.raises(UsageError, match="cyborg acts on feature maps"):
        Cyborg(Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), CyborgOptions())


@pytest.mark.parametrize("alpha", [0.5, "dynamic"])
def test_without_a_map_only_cross_entropy_is_left_and_a_flat_activation_map_is_finite(alpha: Any) -> None:
    method, batch = cyborg(alpha=alpha), make_batch()
    parts = method(replace(batch, has_saliency=torch.zeros(4, dtype=torch.bool)))
    assert float(parts["map_mse"]) == 0
    share = 1 if alpha == "dynamic" else alpha
    assert float(parts["total"]) == pytest.approx(share * float(parts["cross_entropy"]), rel=1e-6)
    nn.init.zeros_(method.backbone.model.fc.weight)
    parts = method(batch)
    parts["total"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
