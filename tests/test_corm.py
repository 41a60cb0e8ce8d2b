"""CoRM: where the noise falls, and the loss sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import transcription
from lookhere.backbone import Tapped
from lookhere.methods.corm import CoRM, CoRMOptions, noise_outside
from test_sage import make_batch, network


def corm(model: nn.Module, **options: Any) -> CoRM:
    return CoRM(Tapped(model), CoRMOptions(**options))


def test_noise_falls_where_the_map_is_low() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 3, 4, 5)
    saliency = torch.linspace(0, 1, 5).expand(200, 1, 4, 5)
    noise = noise_outside(images, saliency, 0.4) - images
    assert torch.equal(noise[..., 4], torch.zeros(200, 3, 4))
    for column, share in enumerate((1, 0.75, 0.5, 0.25)):
        assert float(noise[..., column].std()) == pytest.approx(0.4 * share, rel=0.06)  # 2,400 draws
        assert float(noise[..., column].mean()) == pytest.approx(0, abs=0.04)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.005  # each channel draws its own


def test_the_loss_is_the_sum_of_both_cross_entropies() -> None:
    model, batch = network(norm=False), make_batch(6, maps=4)
    given: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, images, __: given.append(images[0]))
    parts = corm(model, batch_norm="per_view")(batch)
    clean, noisy = given
    assert torch.equal(clean, batch.image)
    assert len(noisy) == 4
    assert not torch.equal(noisy, clean[:4])
    label = batch.label.tolist()
    ce, noisy_ce = (
        sum(transcription.xent(model(images)[i].tolist(), label[i]) for i in range(len(images))) / 6
        for images in (clean, noisy)
    )
    assert float(parts["cross_entropy"]) == pytest.approx(ce)
    assert float(parts["noisy_cross_entropy"]) == pytest.approx(noisy_ce)
    assert float(parts["total"]) == pytest.approx(ce + noisy_ce)


def test_without_noise_or_without_a_map() -> None:
    model = network(norm=False)
    still = corm(model, noise=0)(make_batch(4))
    torch.testing.assert_close(still["noisy_cross_entropy"], still["cross_entropy"])
    without = corm(model)(make_batch(4, maps=0))
    assert float(without["noisy_cross_entropy"]) == 0
    torch.testing.assert_close(without["total"], still["cross_entropy"])


def test_batch_norm_sees_the_views_that_the_option_names() -> None:
    running = {}
    for mode in ("joint", "per_view", "clean"):
        torch.manual_seed(0)
        model, batch = network(), make_batch(6)
        corm(model, noise=5, batch_norm=mode)(batch)
        running[mode] = model[1].running_var.clone()
    plain = network()
    plain(batch.image)
    torch.testing.assert_close(running["clean"], plain[1].running_var)
    assert (running["joint"] > running["clean"]).all()
    assert not torch.allclose(running["joint"], running["per_view"])
