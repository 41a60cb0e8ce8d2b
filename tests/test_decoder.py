"""Decoders of saliency maps: segmentation-models-pytorch's networks on timm's pyramids."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch

from lookhere.backbone import Backbone
from lookhere.decoder import MapDecoder
from lookhere.errors import UsageError
from lookhere.weights import BackboneOptions, create_backbone

PAPER = ["resnet50", "densenet121", "tf_efficientnet_b7", "swin_tiny_patch4_window7_224", "resnet18"]


def random_backbone(name: str, size: int) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(BackboneOptions(name=name, weights="random"), classes=2, size=size)


@pytest.mark.parametrize("name", ["unet", "unet++"])
def test_it_is_the_decoder_of_segmentation_models_pytorch(name: str) -> None:
    backbone = random_backbone("resnet18", 96)
    decoder = MapDecoder(backbone, name).eval().double()
    whole = (smp.Unet if name == "unet" else smp.UnetPlusPlus)("resnet18", encoder_weights=None, classes=1)
    whole.encoder.load_state_dict(backbone.model.state_dict())  # torchvision's names are timm's
    whole.decoder.load_state_dict(decoder.decoder.state_dict())
    whole.segmentation_head[0].load_state_dict(decoder.head.state_dict())
    whole.eval().double()
    image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        logits = decoder(image, backbone.eval().double()(image, pyramid=True).pyramid)
        torch.testing.assert_close(logits, whole(image))
    # Its initial weights are drawn as there, too.
    first, other = decoder.decoder, smp.Unet("resnet18", encoder_weights=None).decoder
    spread = [next(p for p in module.parameters() if p.ndim == 4).std() for module in (first, other)]
    assert float(spread[0] / spread[1]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("backbone", PAPER)
def test_maps_have_the_size_of_the_image_and_read_every_level(backbone: str) -> None:
    models = {side: random_backbone(backbone, side).eval() for side in (96, 80)}
    for name, side in (("unet", 96), ("unet", 80), ("unet++", 96)):
        model = models[side]
        decoder = MapDecoder(model, name).eval()
        image = torch.randn(2, 3, side, side)
        with torch.no_grad():
            features = model(image, pyramid=True)
        levels = tuple(level.requires_grad_() for level in features.pyramid)
        logits = decoder(image, levels)
        assert logits.shape == (2, 1, side, side)
        gradients = torch.autograd.grad(logits.square().sum(), levels)
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    with pytest.raises(UsageError, match=r'multiples of 32, got 80 x 80; change data.size, or take the decoder "unet"'):
        MapDecoder(models[80], "unet++").check_size(80, 80)


def test_sides_may_differ_and_be_odd() -> None:
    model = random_backbone("resnet18", 96).eval()
    image = torch.randn(1, 3, 75, 101)
    logits = MapDecoder(model).eval()(image, model(image, pyramid=True).pyramid)
    assert logits.shape == (1, 1, 75, 101)


def test_a_backbone_whose_levels_do_not_halve_is_refused() -> None:
    with pytest.raises(UsageError, match="pyramid"):
        MapDecoder(random_backbone("vit_tiny_patch16_224", 64))
