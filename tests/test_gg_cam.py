"""GG-CAM against a transcription in plain arithmetic, and what its sigmas do under SGD."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.methods.gg_cam import GgCam, GgCamOptions


def make_batch(b: int = 4, maps: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    has = torch.arange(b) < maps
    return Batch(
        image=torch.randn(b, 3, 64, 64, generator=generator, dtype=torch.float64),
        label=(torch.arange(b) + 1) % 3,
        saliency=torch.rand(b, 1, 64, 64, generator=generator, dtype=torch.float64) * has.view(-1, 1, 1, 1),
        has_saliency=has,
        weight=torch.ones(b, dtype=torch.float64),
        index=torch.arange(b),
    )


def gg_cam(name: str = "test_resnet", **options: Any) -> GgCam:
    torch.manual_seed(0)
    return GgCam(Backbone(timm.create_model(name, num_classes=3)), GgCamOptions(**options)).double()


def transcribed(method: GgCam, features: Tensor, saliency: Tensor, batch: Batch) -> tuple[float, float, float]:
    """Return the loss, cross-entropy and map difference of 2 x 2 maps, sample by sample."""
    o, w, bias = method.options, method.weight.tolist(), method.bias.tolist()
    s_c, s_d, k = (float(p.detach()) for p in (method.log_sigma_c, method.log_sigma_d, method.log_scale))
    total = ce_sum = d_sum = 0.0
    for f, human, label, mapped in zip(
        features.tolist(), saliency.tolist(), batch.label, batch.has_saliency, strict=True
    ):
        n = 1 if o.channels == "sum" else len(w[0])
        places = [(i, j) for i in range(2) for j in range(2)]
        cam = [{p: sum(a * c[p[0]][p[1]] for a, c in zip(row, f, strict=True)) / n for p in places} for row in w]
        logits = [sum(one.values()) / 4 + b for one, b in zip(cam, bias, strict=True)]
        ce = math.log(sum(math.exp(v) for v in logits)) - logits[int(label)]
        if o.variant == "released":
            mine = cam[0]
        else:
            mine = {p: 1 / (1 + math.exp(-(math.exp(k) * v + o.shift))) for p, v in cam[int(label)].items()}
        d = sum((mine[i, j] - human[0][i][j]) ** 2 for i, j in places) / 4
        total += ce / math.exp(s_c) ** 2 + math.log(math.exp(s_c) + 1)
        ce_sum += ce
        if mapped:
            total += d / (2 * math.exp(s_d) ** 2) + math.log(math.exp(s_d) + 1)
            d_sum += d
    return total / len(batch), ce_sum / len(batch), d_sum / len(batch)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("channels", ["mean", "sum"])
def test_the_loss_is_its_formula(variant: str, channels: str) -> None:
    method, batch = gg_cam(variant=variant, channels=channels, shift=-0.4), make_batch(maps=3)
    with torch.no_grad():
        for parameter, value in ((method.log_sigma_c, 0.3), (method.log_sigma_d, -0.7), (method.log_scale, 0.9)):
            parameter.fill_(value)
    parts = method(batch)
    feature_map = method.backbone(batch.image).feature_map
    human = nn.functional.interpolate(batch.saliency, (2, 2), mode="bilinear", antialias=True)
    expected = transcribed(method, feature_map, human, batch)
    assert [float(parts[n]) for n in ("total", "cross_entropy", "map_mse")] == pytest.approx(expected, rel=1e-9)
    assert [float(parts[n]) for n in ("sigma_c", "sigma_d", "scale")] == pytest.approx(
        [math.exp(0.3), math.exp(-0.7), math.exp(0.9)]
    )


def test_the_head_is_the_methods_own_and_its_logits_are_the_means_of_its_maps() -> None:
    method, image = gg_cam(channels="mean").eval(), make_batch().image
    bound = method.weight.shape[1] ** -0.5
    assert method.weight.shape == (3, 96)
    assert 0.9 * bound < float(method.weight.abs().max()) <= bound
    logits = method.predict(image)
    embedding = method.backbone(image).embedding
    torch.testing.assert_close(logits, embedding @ method.weight.T / 96 + method.bias)
    nn.init.zeros_(method.backbone.model.fc.weight)
    torch.testing.assert_close(method.predict(image), logits)
    assert not any(p.requires_grad for p in method.backbone.model.fc.parameters())
    summed = gg_cam(channels="sum").eval()
    torch.testing.assert_close(summed.predict(image), 96 * (logits - method.bias) + method.bias)


def gradients(method: GgCam, batch: Batch) -> dict[str, Tensor | None]:
    method.zero_grad()
    method(batch)["total"].backward()
    return {name: parameter.grad for name, parameter in method.named_parameters()}


def test_what_each_variant_learns() -> None:
    batch = make_batch()
    paper, released = gradients(gg_cam(), batch), gradients(gg_cam(variant="released"), batch)
    assert all(paper[name].abs() > 0 for name in ("log_sigma_c", "log_sigma_d", "log_scale"))
    assert released["log_scale"] is None  # as in the released code, where the sigmoid takes the label
    others = replace(batch, label=torch.tensor([1, 2, 1, 2]))
    rows = gradients(gg_cam(variant="released"), others)["weight"].abs().amax(1)
    assert float(rows[0]) > 1e15 > 1e3 > float(rows[1:].max())  # class 0's map is guided, which no sample shows
    rows = gradients(gg_cam(), others)["weight"].abs().amax(1)
    assert float(rows.max()) < 10


def test_batches_without_maps_leave_the_sigma_of_the_maps_alone() -> None:
    method, batch = gg_cam(), make_batch(maps=0)
    found = gradients(method, batch)
    assert float(found["log_sigma_d"]) == float(found["log_scale"]) == 0
    assert float(method(batch)["map_mse"]) == 0
    parts = method(replace(batch, weight=torch.zeros(4, dtype=torch.float64)))
    assert float(parts["total"]) == 0


def test_sample_weights_weigh_every_term() -> None:
    method, batch = gg_cam().eval(), make_batch(maps=3)
    twice = replace(batch, weight=torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    rows = torch.tensor([0, 0, 1, 2])
    repeated = Batch(**{field.name: getattr(batch, field.name)[rows] for field in fields(Batch)[:-2]})
    for name, value in method(twice).items():
        torch.testing.assert_close(value, method(repeated)[name])


def train(method: GgCam, steps: int) -> list[float]:
    method, batch = method.float().train(), make_batch()
    batch = replace(batch, image=batch.image.float(), saliency=batch.saliency.float(), weight=batch.weight.float())
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.005, momentum=0.9, weight_decay=1e-6)
    losses = []
    for _ in range(steps):
        loss = method(batch)["total"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_sgd_survives_neutral_starts_and_not_the_released_ones() -> None:
    losses = train(gg_cam(), 50)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert not all(math.isfinite(loss) for loss in train(gg_cam(variant="released"), 5))


def test_sgd_learns_the_sum_over_channels_and_not_their_mean() -> None:
    batch = make_batch()
    errors = {}
    for channels in ("mean", "sum"):
        train(method := gg_cam(channels=channels), 50)
        method.train()
        errors[channels] = float(method(replace(batch, image=batch.image.float()))["cross_entropy"].detach())
    assert errors["sum"] < 0.5 < 1.0 < errors["mean"]
    assert "Adam" in gg_cam(channels="mean").notes[0]
    assert not gg_cam().notes


@pytest.mark.parametrize(("name", "start"), [("test_resnet", -23), ("test_efficientnet", -16)])
def test_released_starts_are_those_of_the_two_networks(name: str, start: int) -> None:
    method = gg_cam(name, variant="released")
    assert (float(method.log_sigma_c), float(method.log_sigma_d)) == (7, start)


def test_a_module_without_feature_maps_is_refused() -> None:
    with pytest.raises(UsageError, match="gg-cam acts on feature maps"):
        GgCam(Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), GgCamOptions())


def test_a_network_of_tokens_is_refused() -> None:
    method = GgCam(Backbone(timm.create_model("test_vit", num_classes=3, img_size=64)), GgCamOptions()).double()
    with pytest.raises(UsageError, match="this network gives tokens"):
        method(make_batch(2))
