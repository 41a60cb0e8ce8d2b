"""Gradients that a loss can act on: against captum, and differentiable once more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Saliency
from torch import Tensor, nn

from lookhere.attribution import grad_cam, input_gradient, of_class, twice_differentiable
from lookhere.backbone import Tapped
from lookhere.methods import create_method
from lookhere.methods.harmonization import HarmonizationOptions
from lookhere.methods.rrr import RRROptions
from test_sage import make_batch


def layers() -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network in two parts: images to a feature map, and that to three logits."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Tanh()).double()
    return features, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()


def test_input_gradient_is_captums_and_its_own_gradient_is_right() -> None:
    features, head = layers()
    batch = make_batch(5)
    images = batch.image.requires_grad_()
    gradient = input_gradient(of_class(head(features(images)), batch.label), images)
    expected = Saliency(nn.Sequential(features, head)).attribute(images, batch.label, abs=False)
    torch.testing.assert_close(gradient, expected)

    def energy(weight: Tensor) -> Tensor:
        logits = torch.func.functional_call(head, {"2.weight": weight}, (features(images),))
        return input_gradient(logits.log_softmax(1), images).square().sum()

    assert torch.autograd.gradcheck(energy, head[2].weight.detach().clone().requires_grad_())


def test_grad_cam_is_captums_and_differentiable() -> None:
    features, head = layers()
    batch = make_batch(5)
    feature_map = features(batch.image)
    cam = grad_cam(of_class(head(feature_map).exp(), batch.label), feature_map)
    whole = LayerGradCam(lambda images: head(features(images)).exp(), features)
    expected = whole.attribute(batch.image, batch.label, relu_attributions=False)
    assert cam.shape == (5, 1, 3, 3)
    torch.testing.assert_close(cam, expected)
    cam.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in (features[0].weight, head[2].weight))


def test_of_class_picks_each_samples_own() -> None:
    label = torch.tensor([2, 0, 1, 2])
    for scores in (torch.randn(4, 3), torch.randn(4, 3, 5, 6)):
        picked = of_class(scores, label)
        assert picked.shape == (4, *scores.shape[2:])
        assert all(torch.equal(picked[i], scores[i, c]) for i, c in enumerate(label.tolist()))


class Attention(nn.Module):
    """Logits from one fused attention over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.head = nn.Linear(8, 3)

    def attend(self, images: Tensor) -> Tensor:
        q, k, v = self.patches(images).flatten(2).mT[:, None].chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.attend(images)[:, 0].mean(1))


def test_attention_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    network = Attention().double()
    images = make_batch(2).image.requires_grad_()
    with twice_differentiable():
        out = network.attend(images)
    q, k, v = network.patches(images).flatten(2).mT[:, None].chunk(3, dim=-1)
    by_hand = (q @ k.mT / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(out, by_hand)
    found, expected = (
        torch.autograd.grad(input_gradient(each, images).square().sum(), network.patches.weight)[0]
        for each in (out, by_hand)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [RRROptions(), HarmonizationOptions()])
def test_methods_that_train_input_gradients_take_attention(options: RRROptions | HarmonizationOptions) -> None:
    network = Attention().double()
    create_method(options, Tapped(network))(make_batch(4))["total"].backward()
    assert float(network.patches.weight.grad.abs().max()) > 0
