"""UNET+Gaze: its loss by a transcription in plain NumPy, and what its decoder is and is not used for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lookhere.batch import Batch
from lookhere.errors import UsageError
from lookhere.methods.unet_gaze import UnetGaze, UnetGazeOptions
from lookhere.weights import BackboneOptions, create_backbone
from small_batch import small_batch


def make_method(**options: Any) -> UnetGaze:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneOptions(name="test_resnet", weights="random"), classes=3, size=32)
    return UnetGaze(backbone, UnetGazeOptions(**options)).double()


def make_batch(b: int = 5, maps: int = 3) -> Batch:
    return small_batch(b, maps, 32, [1.0, 2.0, 0.5, 1.0, 3.0])


def map_loss(kind: str, m: np.ndarray, s: np.ndarray) -> float:
    """One map's loss, pixel by pixel."""
    p = 1 / (1 + np.exp(-m))
    if kind == "bce":
        values = [-(t * np.log(q) + (1 - t) * np.log(1 - q)) for q, t in zip(p.flat, s.flat, strict=True)]
        return float(sum(values) / len(values))
    overlap = sum(q * t for q, t in zip(p.flat, s.flat, strict=True))
    return float(1 - (2 * overlap + 1) / (sum(p.flat) + sum(s.flat) + 1))


@pytest.mark.parametrize("kind", ["bce", "dice"])
def test_the_loss_is_a_share_of_cross_entropy_and_of_the_maps(kind: str) -> None:
    method, batch = make_method(map_loss=kind, gamma=0.3).train(), make_batch()
    drawn: list[Tensor] = []
    method.decoder.register_forward_hook(lambda *given: drawn.append(given[2].detach()))
    parts = method(batch)
    logits = method.backbone(batch.image).logits.detach().numpy()
    w = batch.weight.numpy()
    ce = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, batch.label, strict=True)]
    maps = [map_loss(kind, drawn[0][i, 0].numpy(), batch.saliency[i, 0].numpy()) if i < 3 else 0.0 for i in range(5)]
    expected_ce, expected_map = (w * ce).sum() / w.sum(), (w * maps).sum() / w.sum()
    assert float(parts["cross_entropy"].detach()) == pytest.approx(expected_ce, abs=1e-9)
    assert float(parts[f"map_{kind}"].detach()) == pytest.approx(expected_map, abs=1e-9)
    assert float(parts["total"].detach()) == pytest.approx(0.3 * expected_ce + 0.7 * expected_map, abs=1e-9)


def test_gamma_says_which_weights_learn_from_what() -> None:
    for gamma in (0.0, 1.0):
        method = make_method(gamma=gamma).train()
        method(make_batch())["total"].backward()
        head = method.backbone.model.get_classifier().weight.grad.abs().max()
        decoder = method.decoder.head.weight.grad.abs().max()
        assert (float(head) > 0, float(decoder) > 0) == (gamma == 1, gamma == 0)
        assert float(method.backbone.model.conv1[0].weight.grad.abs().max()) > 0


def test_dropout_acts_on_the_embedding_in_training_only() -> None:
    method, batch = make_method(dropout=0.9, gamma=1.0), make_batch()
    torch.manual_seed(0)
    losses = {round(float(method.train()(batch)["total"].detach()), 9) for _ in range(3)}
    assert len(losses) == 3
    fixed = {round(float(method.eval()(batch)["total"].detach()), 9) for _ in range(3)}
    assert len(fixed) == 1
    torch.testing.assert_close(method.predict(batch.image), method.backbone.model(batch.image))


def test_prediction_is_the_classifier_alone_and_maps_are_probabilities() -> None:
    method, batch = make_method().eval(), make_batch()
    logits = method.decoder(batch.image, method.backbone(batch.image, pyramid=True).pyramid)
    maps = method.predict_map(batch.image)
    assert maps.shape == (5, 1, 32, 32)
    torch.testing.assert_close(maps, 1 / (1 + torch.exp(-logits)))
    with pytest.raises(UsageError, match="gamma = 1 does not learn to predict maps"):
        make_method(gamma=1.0).predict_map(batch.image)

    def fail(*_: Any) -> None:
        raise AssertionError("prediction decodes")

    method.decoder.forward = fail
    torch.testing.assert_close(method.predict(batch.image), method.backbone.model(batch.image))


@pytest.mark.parametrize("kind", ["bce", "dice"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_sure_and_wrong_maps_are_finite(kind: str, value: float) -> None:
    method, batch = make_method(map_loss=kind).train(), make_batch(maps=5)
    torch.nn.init.constant_(method.decoder.head.bias, 1e4)
    batch.saliency.fill_(value)
    total = method(batch)["total"]
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())
