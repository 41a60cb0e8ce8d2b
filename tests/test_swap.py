"""Swapped backgrounds: who gives to whom, what a composite shows, and what is trained on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lookhere.backbone import Tapped
from lookhere.batch import Batch
from lookhere.methods.background_swap import BackgroundSwap, BackgroundSwapOptions
from lookhere.methods.sage import Sage, SageOptions
from lookhere.swap import composite, draw_partners, swap_region
from lookhere.views import ViewOptions, saliency_views


@pytest.mark.parametrize("swap_from", ["any", "same", "other"])
def test_partners_are_uniform_among_those_allowed(swap_from: Any) -> None:
    torch.manual_seed(0)
    label = torch.tensor([0, 0, 0, 1, 1, 2])
    counts = torch.zeros(6, 6)
    for _ in range(6000):
        counts[torch.arange(6), draw_partners(label, swap_from)] += 1  # 2 has no partner of its class: -1, column 5
    same = label[:, None] == label
    allowed = {"any": torch.ones(6, 6), "same": same.float(), "other": (~same).float()}[swap_from]
    allowed = allowed * (1 - torch.eye(6))
    expected = 6000 * allowed / allowed.sum(1, keepdim=True).clamp_min(1)
    if swap_from == "same":
        assert counts[5, 5] == 6000
        counts[5, 5] = 0
    assert (counts[allowed == 0] == 0).all()
    assert (counts - expected).abs().max() < 6 * 6000**0.5 / 2


def test_nothing_salient_of_the_partner_is_left_in_a_composite() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.rand(2, 1, 16, 16, generator=generator) > 0.6).float(), torch.zeros(2, 1, 16, 16)
    theirs[0, :, 4:9, 2:7] = 1  # the second partner has no map
    images, backgrounds = torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    pasted = composite(images, backgrounds, swap_region(mine, theirs))
    for i in range(2):
        for y in range(16):
            for x in range(16):
                kept = bool(mine[i, 0, y, x]) or bool(theirs[i, 0, y, x])
                assert float(pasted[i, 0, y, x]) == float(kept)
    alone = composite(images, backgrounds, swap_region(mine))
    assert torch.equal(alone, mine.expand_as(alone))


def test_feathering_is_a_gaussian_edge_that_keeps_the_inside_and_the_outside() -> None:
    saliency = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    saliency[..., 32:] = 1
    soft = swap_region(saliency, feather=2.0)[0, 0, 30]
    assert float(soft[20]) == 0
    assert float(soft[44]) == pytest.approx(1, abs=1e-12)
    offset = torch.arange(64, dtype=torch.float64) - 31.5
    edge = 0.5 * (1 + torch.erf(offset / (2.0 * 2**0.5)))
    assert (soft - edge).abs().max() < 0.03  # the kernel ends at two deviations
    assert torch.equal(swap_region(saliency, feather=0.0), saliency)
    assert swap_region(torch.ones(1, 1, 8, 8), feather=20.0).max() <= 1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image=torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64),
        label=torch.tensor([0, 1, 0, 1, 0]),
        saliency=torch.rand(5, 1, 12, 12, generator=generator, dtype=torch.float64),
        has_saliency=torch.tensor([True, True, False, True, False]),
        weight=torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0], dtype=torch.float64),
        index=torch.arange(5),
    )


def test_background_swap_is_the_mean_over_images_and_composites() -> None:
    model, batch = network(), make_batch()
    batch = dataclasses.replace(batch, saliency=batch.saliency * batch.has_saliency.view(-1, 1, 1, 1))
    method = BackgroundSwap(Tapped(model), BackgroundSwapOptions(share=0.3, swap_from="other", feather=0))
    torch.manual_seed(7)
    parts = method(batch)
    torch.manual_seed(7)
    partner = draw_partners(batch.label, "other").tolist()
    total = 0.0
    for i in range(5):
        loss = F.cross_entropy(model(batch.image[i : i + 1]), batch.label[i : i + 1])
        if batch.has_saliency[i]:
            m = torch.maximum(batch.saliency[i], batch.saliency[partner[i]])
            pasted = m * batch.image[i] + (1 - m) * batch.image[partner[i]]
            loss = 0.7 * loss + 0.3 * F.cross_entropy(model(pasted[None]), batch.label[i : i + 1])
        total += float(batch.weight[i]) * float(loss.detach())
    assert float(parts["total"]) == pytest.approx(total / float(batch.weight.sum()), rel=1e-9)


@pytest.mark.parametrize("kind", [BackgroundSwap, Sage])
def test_a_batch_without_a_partner_of_the_wanted_class_is_seen_as_it_is(kind: Any) -> None:
    model, batch = network(), dataclasses.replace(make_batch(), label=torch.zeros(5, dtype=torch.int64))
    options: Any = BackgroundSwapOptions(swap_from="other")
    if kind is Sage:
        options = SageOptions(views=ViewOptions(degrade="swap", swap_from="other"))
    seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    parts = kind(Tapped(model), options)(batch)
    assert seen == [5]
    scale = 1 if kind is BackgroundSwap else 0.5
    torch.testing.assert_close(parts["total"], scale * parts["cross_entropy"])


def test_sage_swaps_with_drawn_partners_and_their_maps() -> None:
    model, batch = network(), make_batch()
    batch = dataclasses.replace(batch, saliency=batch.saliency * batch.has_saliency.view(-1, 1, 1, 1))
    views = ViewOptions(degrade="swap", swap_from="other", feather=0)
    torch.manual_seed(3)
    parts = Sage(Tapped(model), SageOptions(views=views, cross_entropy_on="clean+salient_kept"))(batch)
    torch.manual_seed(3)
    partner = draw_partners(batch.label, "other")
    guided = batch.has_saliency.nonzero().squeeze(1)
    assert (batch.label[partner[guided]] != batch.label[guided]).all()
    region = torch.maximum(batch.saliency[guided], batch.saliency[partner[guided]])
    made = saliency_views(
        batch.image[guided],
        batch.saliency[guided],
        views,
        others=batch.image[partner[guided]],
        others_saliency=batch.saliency[partner[guided]],
    )
    torch.testing.assert_close(made.kept, region * made.clean + (1 - region) * batch.image[partner[guided]])
    torch.testing.assert_close(made.removed, region * batch.image[partner[guided]] + (1 - region) * made.clean)
    each = F.cross_entropy(model(batch.image), batch.label, reduction="none")
    kept = F.cross_entropy(model(made.kept), batch.label[guided], reduction="none")
    each = each.index_copy(0, guided, (each[guided] + kept) / 2)
    torch.testing.assert_close(parts["cross_entropy"], (each * batch.weight).sum() / batch.weight.sum())
