"""RRR against differences of the network's own outputs, pixel by pixel."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookhere.backbone import Tapped
from lookhere.methods.rrr import RRR, RRROptions
from test_sage import make_batch, network


def rrr(model: nn.Module, **options: Any) -> RRR:
    return RRR(Tapped(model), RRROptions(**options))


@torch.no_grad()
def differences(model: nn.Module, images: Tensor) -> Tensor:
    """Return d/dx sum_c log p_c of each image by central differences."""
    out = torch.zeros_like(images)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in images.shape[1:])).tolist():
        step = torch.zeros_like(images)
        step[(slice(None), *place)] = 1e-5
        up, down = (model(images + sign * step).softmax(1).log().sum(1) for sign in (1, -1))
        out[(slice(None), *place)] = (up - down) / 2e-5
    return out


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_loss_is_the_equation(norm: str) -> None:
    model, batch = network(norm=False), make_batch(4, maps=3)
    model[-1].weight.data *= 20  # the term is all but zero for a network that is undecided
    parts = rrr(model, lam=0.03, limit="none", norm=norm)(batch)
    gradient = differences(model, batch.image).tolist()
    wrong = []
    for i in range(3):
        total = 0.0
        for channel in gradient[i]:
            for row, s_row in zip(channel, batch.saliency[i, 0].tolist(), strict=True):
                for g, s in zip(row, s_row, strict=True):
                    total += abs((1 - s) * g) if norm == "l1" else ((1 - s) * g) ** 2 / 2
        wrong.append(total)
    ce = nn.functional.cross_entropy(model(batch.image), batch.label)
    assert float(parts["right_reasons"]) == pytest.approx(sum(wrong) / 4, rel=1e-6)
    assert float(parts["total"]) == pytest.approx(float(ce) + 0.03 * sum(wrong) / 4, rel=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_the_gradient_of_the_penalty_is_that_of_its_differences(norm: bool) -> None:
    model, batch = network(norm=norm), make_batch(4)  # in training mode: through the batch's own statistics
    model[-1].weight.data *= 20
    method = rrr(model, limit="none")

    def penalty(value: Tensor) -> Tensor:
        return torch.func.functional_call(method, {"backbone.model.0.weight": value}, (batch,))["right_reasons"]

    assert torch.autograd.gradcheck(penalty, model[0].weight.detach().clone().requires_grad_())


def test_the_limit_scales_the_penalty_down_to_the_cross_entropy() -> None:
    model, batch = network(norm=False), make_batch(4)
    model[-1].weight.data *= 20
    free, limited = (rrr(model, lam=1e3, limit=limit)(batch) for limit in ("none", 0.5))
    ce = free["cross_entropy"]
    assert float(free["total"]) > 10 * float(ce)
    torch.testing.assert_close(limited["total"], 1.5 * ce)
    torch.testing.assert_close(limited["right_reasons"], free["right_reasons"])
    found = torch.autograd.grad(limited["total"] - limited["cross_entropy"], model[0].weight)[0]
    whole = torch.autograd.grad(free["right_reasons"], model[0].weight)[0]
    torch.testing.assert_close(found, whole * (0.5 * ce / free["right_reasons"]).detach())
    small = [float(rrr(model, lam=1e-9, limit=limit)(batch)["total"]) for limit in ("none", 1.0)]
    assert small[0] == small[1]


def test_what_the_map_covers_is_free_and_no_map_is_no_penalty() -> None:
    model, batch = network(norm=False), make_batch(4)
    covered = dataclasses.replace(batch, saliency=torch.ones_like(batch.saliency))
    for each in (covered, make_batch(4, maps=0)):
        parts = rrr(model, lam=1e3)(each)
        assert float(parts["right_reasons"]) == 0
        assert float(parts["total"]) == float(parts["cross_entropy"])
        parts["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not batch.image.requires_grad
