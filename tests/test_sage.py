"""SAGE as a method and as a loss in a loop of one's own."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import lookhere
import transcription
from lookhere.backbone import Tapped
from lookhere.batch import Batch
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
    fields = {f.name: getattr(whole, f.name)[:2] for f in dataclasses.fields(Batch)[:-1]}
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
    repeated = Batch(**{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(Batch)[:-1]})
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
