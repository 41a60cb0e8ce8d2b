"""SAGE as a method and as a loss in a loop of one's own."""

from __future__ import annotations

import dataclasses
import itertools
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.transforms.v2 import functional as tv

import lookhere
import shared_steps
import transcription
from lookhere.backbone import Backbone, Tapped
from lookhere.batch import Batch
from lookhere.data.batches import Batches
from lookhere.errors import UsageError
from lookhere.methods import Method, Sage, SageOptions
from lookhere.methods.base import CrossEntropyOptions
from lookhere.views import ViewOptions, saliency_views

ROOT = Path(__file__).parents[1]


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Tanh(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 3)).double()


def make_batch(b: int = 6, maps: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    has = torch.arange(b) < (b if maps is None else maps)
    saliency = torch.rand(b, 1, 12, 12, generator=generator, dtype=torch.float64) * has.view(-1, 1, 1, 1)
    return Batch(
        image=torch.randn(b, 3, 12, 12, generator=generator, dtype=torch.float64),
        label=torch.arange(b) % 3,
        saliency=saliency,
        has_saliency=has,
        weight=torch.ones(b, dtype=torch.float64),
        index=torch.arange(b),
    )


def sage(model: nn.Module, **options: Any) -> Sage:
    with pytest.warns(UserWarning, match="effective standard deviation"):
        return Sage(Tapped(model), SageOptions(**options))


def test_the_method_is_equation_8_of_four_passes() -> None:
    model, batch = network(), make_batch()
    parts = sage(model, alpha=0.3, lambda_sla=0.6, lambda_sce=0.1, tau=3.0, batch_norm="per_view")(batch)
    model.train()
    logits, embeddings = [], []
    for view in saliency_views(batch.image, batch.saliency):
        embeddings.append(model[:-1](view).tolist())
        logits.append(model[-1](torch.tensor(embeddings[-1], dtype=torch.float64)).tolist())
    expected = transcription.sage(logits, embeddings, batch.label.tolist(), 0.3, 0.6, 0.1, 3.0)
    names = ("total", "cross_entropy", "logit_alignment", "contrastive_embedding")
    assert [float(parts[name]) for name in names] == pytest.approx(expected, abs=1e-9)


def test_samples_without_a_map_add_cross_entropy_only_and_no_pass() -> None:
    model, whole = network(norm=False), make_batch(6, maps=2)
    images_seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: images_seen.append(len(given[0])))
    parts = sage(model, batch_norm="per_view")(whole)
    assert images_seen == [6, 2, 2, 2]
    fields = {f.name: getattr(whole, f.name)[:2] for f in dataclasses.fields(Batch)[:-2]}
    mapped = sage(model)(Batch(**fields))
    torch.testing.assert_close(parts["logit_alignment"] * 6, mapped["logit_alignment"] * 2)
    torch.testing.assert_close(parts["contrastive_embedding"] * 6, mapped["contrastive_embedding"] * 2)
    ce = Method(Tapped(model), CrossEntropyOptions())(whole)["cross_entropy"]
    torch.testing.assert_close(parts["cross_entropy"], ce)

    images_seen.clear()
    without = sage(model)(make_batch(6, maps=0))
    assert images_seen == [6]
    assert float(without["logit_alignment"]) == float(without["contrastive_embedding"]) == 0
    torch.testing.assert_close(without["total"], 0.5 * ce)


def test_sample_weights_weigh_every_term() -> None:
    model, batch = network(norm=False), make_batch(4)
    twice = dataclasses.replace(batch, weight=torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    rows = torch.tensor([0, 0, 1, 2])
    repeated = Batch(**{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(Batch)[:-2]})
    for name in ("cross_entropy", "logit_alignment", "contrastive_embedding", "total"):
        torch.testing.assert_close(sage(model)(twice)[name], sage(model)(repeated)[name])
    nothing = sage(model)(dataclasses.replace(batch, weight=torch.zeros(4, dtype=torch.float64)))
    assert float(nothing["total"].detach()) == 0


def test_cross_entropy_on_the_kept_view_is_the_mean_of_both() -> None:
    model, batch = network(norm=False), make_batch(5, maps=3)
    parts = sage(model, cross_entropy_on="clean+salient_kept")(batch)
    kept = saliency_views(batch.image, batch.saliency).kept
    ce = nn.functional.cross_entropy
    each = ce(model(batch.image), batch.label, reduction="none")
    each[:3] = (each[:3] + ce(model(kept[:3]), batch.label[:3], reduction="none")) / 2
    torch.testing.assert_close(parts["cross_entropy"], each.mean())


@pytest.mark.parametrize("mode", ["per_view", "joint", "clean"])
@pytest.mark.parametrize("degrade", ["blur", "dim", "noise", "swap"])
def test_the_loss_falls_and_reaches_the_first_layer(mode: str, degrade: str) -> None:
    batch = make_batch(8, maps=6)
    views = ViewOptions(degrade=degrade, kernel=3, sigma=0.5)
    method = Sage(Tapped(network()), SageOptions(batch_norm=mode, views=views), black=[-2.0])
    optimizer = torch.optim.Adam(method.parameters(), 0.03)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = method(batch)["total"]
        loss.backward()
        assert float(method.backbone.model[0].weight.grad.abs().max()) > 0
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_own_loop_gives_the_loss_of_the_method() -> None:
    model, batch = network(norm=False), make_batch(5, maps=3)
    with pytest.warns(UserWarning, match="effective"):
        loss_fn = lookhere.SAGE(model, alpha=0.7, views={"sigma": 3.0})
    loss = loss_fn(batch.image, batch.saliency, batch.label, batch.has_saliency)
    expected = sage(model, alpha=0.7, views=ViewOptions(sigma=3.0))(batch)
    torch.testing.assert_close(loss, expected["total"], rtol=1e-6, atol=1e-6)
    assert {name for name, value in loss_fn.parts.items() if not value.requires_grad} == set(expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValidationError, match="alpha"):
        lookhere.SAGE(model, alpha=1.5)
    with pytest.raises(ValidationError, match="sigmaa"):
        lookhere.SAGE(model, views={"sigmaa": 1})
    wide = {"kernel": 41}
    with pytest.raises(UsageError, match="give black="):
        lookhere.SAGE(model, views={"degrade": "dim"})
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\], got values from 0 to 255"):
        lookhere.SAGE(model, views=wide)(batch.image, (batch.saliency > 0.5) * 255, batch.label)


def test_a_compiled_model_is_compiled_in_the_loss() -> None:
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        return lambda *a: calls.append(1) or graph.forward(*a)

    model, batch = network(norm=False).float(), make_batch(4)
    images, saliency = batch.image.float(), batch.saliency.float()
    plain = lookhere.SAGE(model, views={"kernel": 3, "sigma": 0.5})(images, saliency, batch.label)
    compiled = lookhere.SAGE(torch.compile(model, backend=backend), views={"kernel": 3, "sigma": 0.5})
    torch.testing.assert_close(compiled(images, saliency, batch.label), plain)
    assert calls


def test_the_example_runs_and_is_short(capsys) -> None:
    script = ROOT / "examples" / "own_loop.py"
    assert len(script.read_text().splitlines()) <= 60
    runpy.run_path(str(script), run_name="__main__")
    first, last = (float(line.split()[3]) for line in capsys.readouterr().out.splitlines()[::4][:2])
    assert last < first


def gradients(method: Sage, batch: Batch) -> dict[str, torch.Tensor]:
    """The parts of the loss, and under "gradient" that of all parameters."""
    method.zero_grad()
    parts = method(batch)
    parts["total"].backward()
    gradient = torch.cat([p.grad.flatten() for p in method.parameters()])
    return {"gradient": gradient, **{name: value.detach() for name, value in parts.items()}}


TERMS = ("gradient", "total", "cross_entropy", "logit_alignment", "contrastive_embedding")


@pytest.mark.parametrize("cross_entropy_on", ["clean", "clean+salient_kept"])
@pytest.mark.parametrize(("share", "drawn"), [(0.5, 2), (0.7, 3), (0.01, 1)])
def test_a_share_of_the_samples_gives_the_loss_of_all_in_the_mean_over_all_draws(
    monkeypatch: pytest.MonkeyPatch, share: float, drawn: int, cross_entropy_on: str
) -> None:
    model, batch = network(norm=False), make_batch(6, maps=4)
    images_seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: images_seen.append(len(given[0])))
    common = {"batch_norm": "per_view", "cross_entropy_on": cross_entropy_on}
    method, whole = sage(model, guided_share=share, **common), gradients(sage(model, **common), batch)
    images_seen.clear()
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    found = []
    for order in orders:
        monkeypatch.setattr(torch, "randperm", lambda n, device, order=order: order)
        found.append(gradients(method, batch))
    assert images_seen == [6, drawn, drawn, drawn] * len(orders)
    for name in TERMS:
        mean = torch.stack([one[name] for one in found]).mean(0)
        torch.testing.assert_close(mean, whole[name], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[0]["gradient"], whole["gradient"])


def test_every_third_step_gives_the_loss_of_all_in_the_mean_over_three() -> None:
    model, batch = network(norm=False), make_batch(6, maps=4)
    images_seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: images_seen.append(len(given[0])))
    whole = gradients(sage(model), batch)
    images_seen.clear()
    method = sage(model, guided_every=3)
    found = [gradients(method, dataclasses.replace(batch, step=step)) for step in (3, 4, 5)]
    assert images_seen == [6 + 3 * 4, 6, 6]
    for name in TERMS:
        torch.testing.assert_close(sum(one[name] for one in found) / 3, whole[name], rtol=1e-10, atol=1e-12)

    loss_fn = lookhere.SAGE(model, guided_every=3, views={"kernel": 3, "sigma": 0.5})
    images_seen.clear()
    for _ in range(6):
        loss_fn(batch.image, batch.saliency, batch.label, batch.has_saliency)
    assert images_seen == [18, 6, 6] * 2


def test_by_default_no_random_number_is_drawn() -> None:
    method = sage(network())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    method(make_batch(6, maps=4))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("batch_norm", ["per_view", "joint", "clean"])
def test_smaller_views_are_compared_with_a_smaller_clean_one(batch_norm: str) -> None:
    model, batch = network(norm=False), make_batch(5)
    sizes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _, given, __: sizes.append((len(given[0]), given[0].shape[-1])))
    views = ViewOptions(scale=0.5, kernel=3, sigma=0.7)
    parts = Sage(Tapped(model), SageOptions(batch_norm=batch_norm, views=views))(batch)
    assert sizes == [(5, 12), *([(20, 6)] if batch_norm == "joint" else [(5, 6)] * 4)]

    def smaller(x: torch.Tensor) -> torch.Tensor:
        return tv.resize(x, [6, 6], tv.InterpolationMode.BILINEAR, antialias=True)

    x, s = smaller(batch.image), smaller(batch.saliency)
    blurred = tv.gaussian_blur(x, [3, 3], [0.7, 0.7])
    outputs = [model[:-1](view) for view in (x, s * x + (1 - s) * blurred, blurred, (1 - s) * x + s * blurred)]
    logits, embeddings = [model[-1](z).tolist() for z in outputs], [z.tolist() for z in outputs]
    _, _, sla, sce = transcription.sage(logits, embeddings, batch.label.tolist())
    ce = nn.functional.cross_entropy(model(batch.image), batch.label)
    expected = {"cross_entropy": float(ce), "logit_alignment": sla, "contrastive_embedding": sce}
    assert {name: float(parts[name]) for name in expected} == pytest.approx(expected, abs=1e-7)


def test_a_network_built_for_one_size_refuses_smaller_views() -> None:
    def method(name: str, **more: Any) -> Sage:
        options = SageOptions(views=ViewOptions(scale=0.5, kernel=3, sigma=0.5))
        return Sage(Backbone(timm.create_model(name, num_classes=2, **more)), options)

    method("test_resnet").check_size(64)
    fixed = method("vit_tiny_patch16_224", img_size=64)
    with pytest.raises(UsageError, match=r"method\.views\.scale: 0\.5 makes views of 32 pixels, .*; use 1, or"):
        fixed.check_size(64)
    assert fixed.training
    assert ViewOptions(scale=0.3).side(64) == 19


def test_batches_count_the_steps_of_a_training() -> None:
    for parts in (1, 2):
        batches = Batches(
            shared_steps.make_dataset(), np.arange(10), batch_size=4, mean=(0.5,) * 3, std=(0.5,) * 3, parts=parts
        )
        assert [[batch.step for batch in batches.epoch(epoch)] for epoch in (0, 1, 5)] == [
            [0, 1, 2],
            [3, 4, 5],
            [15, 16, 17],
        ]
