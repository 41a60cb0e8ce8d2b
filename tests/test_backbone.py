"""Backbones: one interface over timm's models, and a tap into any other."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lookhere.backbone import Backbone, Tapped, wrap
from lookhere.errors import UsageError
from lookhere.passes import forward_views, frozen_statistics
from lookhere.weights import BackboneOptions, create_backbone

PAPER = ["resnet50", "densenet121", "tf_efficientnet_b7", "swin_tiny_patch4_window7_224", "resnet18"]


def random_backbone(name: str, size: int = 64) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(BackboneOptions(name=name, weights="random"), classes=3, size=size)


@pytest.mark.parametrize("name", PAPER)
def test_class_activation_maps_average_to_the_logits(name: str) -> None:
    backbone = random_backbone(name).eval()
    with torch.no_grad():
        logits, embedding, feature_map, _ = backbone(torch.randn(2, 3, 64, 64))
        cam = backbone.class_activation_map(feature_map)
        classifier = backbone.model.get_classifier()
        torch.testing.assert_close(cam.mean((2, 3)) + classifier.bias, logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(classifier(embedding), logits)
        torch.testing.assert_close(backbone.model(torch.ones(1, 3, 64, 64)), backbone(torch.ones(1, 3, 64, 64)).logits)
    assert embedding.shape == (2, feature_map.shape[1])


def test_a_tap_reads_what_timms_interface_gives() -> None:
    model = timm.create_model("resnet18", num_classes=2).eval()
    images = torch.randn(2, 3, 64, 64)
    for tap in ("global_pool", "layer4", "fc"):
        tapped = Tapped(model, tap)(images)
        expected = {"fc": model(images)}.get(tap, Backbone(model)(images).embedding)
        torch.testing.assert_close(tapped.embedding, expected)
    torch.testing.assert_close(Tapped(model)(images).embedding, Backbone(model)(images).embedding)
    assert not model.fc._forward_hooks
    assert isinstance(wrap(model), Backbone)
    assert isinstance(wrap(model, "layer4"), Tapped)


class Softmaxed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, 2), nn.Softmax(dim=1))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, 2), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "tap", "message"),
    [
        (nn.Conv2d(3, 2, 1), None, "no linear layer.*tap="),
        (Unused(), "usedd", "no module 'usedd'; did you mean 'used'"),
        (Unused(), None, "'unused' took no part in the forward pass"),
        (Softmaxed(), None, "does not give the output of Softmaxed; return logits"),
        (nn.Sequential(nn.Linear(2, 2)), None, r"must return logits \(b k\), got a tensor of shape \(2, 3, 2, 2\)"),
    ],
)
def test_a_model_that_cannot_be_read_is_told_why(model: nn.Module, tap: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tapped(model, tap)(torch.randn(2, 3, 2, 2))


def test_batch_norm_modes_update_running_statistics_as_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    views = [i + (i + 1) * torch.randn(6 - (i > 0), 3, 4, 4) for i in range(4)]
    means = [view.mean((0, 2, 3)) for view in views]

    def running(mode: str) -> torch.Tensor:
        model[0].reset_running_stats()
        features = forward_views(Tapped(model), views, mode)  # type: ignore[arg-type]
        assert [len(f.logits) for f in features] == [6, 5, 5, 5]
        return model[0].running_mean.clone()

    torch.testing.assert_close(running("clean"), 0.1 * means[0])
    expected = sum((0.1 * 0.9 ** (3 - i)) * mean for i, mean in enumerate(means))
    torch.testing.assert_close(running("per_view"), expected)
    torch.testing.assert_close(running("joint"), 0.1 * torch.cat(views).mean((0, 2, 3)))
    torch.testing.assert_close(
        forward_views(Tapped(model), views, "clean")[2].logits,
        forward_views(Tapped(model), views, "per_view")[2].logits,
    )
    assert model[0].track_running_stats


def test_frozen_statistics_cover_timms_own_batch_norms_and_survive_an_error() -> None:
    backbone = random_backbone("tf_efficientnet_lite0").train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    with frozen_statistics(backbone):
        backbone(torch.randn(2, 3, 64, 64))
    with pytest.raises(RuntimeError), frozen_statistics(backbone):
        backbone(torch.randn(2, 5, 64, 64))
    assert all(torch.equal(before[name], value) for name, value in backbone.named_buffers())
    backbone(torch.randn(2, 3, 64, 64))
    assert any(not torch.equal(before[name], value) for name, value in backbone.named_buffers())


def test_weights_come_from_a_file_with_a_fresh_head(tmp_path) -> None:
    source = timm.create_model("resnet18", num_classes=10)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone = create_backbone(BackboneOptions(name="resnet18", weights=str(tmp_path / "w.safetensors")), 2, 64)
    loaded, expected = backbone.model.state_dict(), source.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected if not name.startswith("fc"))
    assert loaded["fc.weight"].shape == (2, 512)


def test_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(tmp_path, monkeypatch) -> None:
    def create(name: str, weights: str) -> Backbone:
        return create_backbone(BackboneOptions(name=name, weights=weights), 2, 64)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("lookhere.weights.get_session", offline)
    with pytest.raises(
        UsageError, match=r"model\.safetensors of timm/resnet18\.a1_in1k .*--weights PATH/model.safetensors"
    ):
        create("resnet18", "pretrained")
    with pytest.raises(UsageError, match="has no model 'resnet10t_x'; did you mean 'resnet10t'"):
        create("resnet10t_x", "random")
    (tmp_path / "w.pth").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UsageError, match="pickled files are not loaded"):
        create("resnet18", str(tmp_path / "w.pth"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UsageError, match="does not fit resnet18"):
        create("resnet18", str(tmp_path / "cut.safetensors"))
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match=r"does not fit resnet18: .*it lacks 59 of 60 weights, such as bn1\.bias"):
        create("resnet18", str(tmp_path / "part.safetensors"))
    with pytest.raises(UsageError, match="no file nowhere"):
        create("resnet18", "nowhere")
