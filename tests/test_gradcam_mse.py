"""GradCAM-MSE against captum's Grad-CAM, in values and in gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from lookhere.attribution import grad_cam, of_class
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.methods.gradcam_mse import GradCamMse, GradCamMseOptions
from small_batch import small_batch


def make_batch(b: int = 4, maps: int = 4, size: int = 96) -> Batch:
    return small_batch(b, maps, size)


def gradcam_mse(name: str = "test_resnet", **options: Any) -> GradCamMse:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **({"img_size": 64} if "swin" in name else {}))
    return GradCamMse(Backbone(model.double()), GradCamMseOptions(**options))


def gradients(loss: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("normalise", ["max", "min-max"])
@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer4"), ("test_efficientnet", "bn2")])
def test_value_and_gradient_are_those_of_captums_grad_cam(name: str, layer: str, normalise: str) -> None:
    method, batch = gradcam_mse(name, lam=3.0, normalise=normalise), make_batch(maps=3)
    model = method.backbone.model
    captum = LayerGradCam(model, model.get_submodule(layer))
    cam = captum.attribute(batch.image, batch.label, relu_attributions=True, grad_kwargs={"create_graph": True})
    s = nn.functional.interpolate(batch.saliency, (3, 3), mode="bilinear", antialias=True)
    total = nn.functional.cross_entropy(model(batch.image), batch.label)
    for one, human in zip(cam[:3], s[:3], strict=True):
        low = one.min() if normalise == "min-max" else 0
        total = total + 3 * (((one - low) / (one.max() - low) - human) ** 2).mean() / 4
    mine = method(batch)["total"]
    torch.testing.assert_close(mine, total)
    expected = gradients(total, model)
    torch.testing.assert_close(gradients(mine, model), expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "densenet121", "swin_tiny_patch4_window7_224"])
def test_at_the_pooled_map_grad_cam_is_the_class_activation_map_over_its_pixels(name: str) -> None:
    method, batch = gradcam_mse(name), make_batch(2, size=64)
    features = method.backbone(batch.image)
    cam = grad_cam(of_class(features.logits, batch.label), features.feature_map)
    own = of_class(method.backbone.class_activation_map(features.feature_map), batch.label)[:, None]
    torch.testing.assert_close(cam, own / own[0].numel())


def test_samples_without_a_map_add_cross_entropy_only() -> None:
    method, batch = gradcam_mse().eval(), make_batch()
    parts = method(replace(batch, has_saliency=torch.zeros(4, dtype=torch.bool)))
    assert float(parts["map_mse"]) == 0
    torch.testing.assert_close(parts["total"], parts["cross_entropy"])
    first = method(replace(batch, has_saliency=torch.arange(4) == 0))["map_mse"]
    rows = {name: value[:1] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    torch.testing.assert_close(first * 4, method(Batch(**rows))["map_mse"])


@pytest.mark.parametrize("normalise", ["max", "min-max"])
@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_class_without_evidence_is_finite(normalise: str, weight: float) -> None:
    method, batch = gradcam_mse(normalise=normalise), make_batch()
    nn.init.constant_(
        method.backbone.model.fc.weight, weight
    )  # features are not negative: Grad-CAM has no positive part
    parts = method(batch)
    s = nn.functional.interpolate(batch.saliency, (3, 3), mode="bilinear", antialias=True)
    torch.testing.assert_close(parts["map_mse"], s.square().mean())
    parts["total"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_a_module_without_feature_maps_is_refused() -> None:
    with pytest.raises(UsageError, match="gradcam-mse acts on feature maps"):
        GradCamMse(Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), GradCamMseOptions())


def test_a_network_of_tokens_is_refused() -> None:
    method = GradCamMse(
        Backbone(timm.create_model("test_vit", num_classes=3, img_size=64).double()), GradCamMseOptions()
    )
    with pytest.raises(UsageError, match="this network gives tokens"):
        method(make_batch(2, size=64))
