"""What every training method promises, and every method on every backbone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lookhere.batch import Batch
from lookhere.cli import main
from lookhere.errors import UsageError
from lookhere.methods import METHODS, Method, create_method
from lookhere.methods.base import guided_mean
from lookhere.training.checkpoint import write_tensors
from lookhere.weights import BackboneOptions, create_backbone

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")
BACKBONES = ("resnet50", "densenet121", "tf_efficientnet_b7", "swin_tiny_patch4_window7_224", "resnet18")
DOCS = Path(__file__).parents[1] / "docs"


def make_method(name: str, backbone: str | None = None, size: int = 64) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name]
    options = BackboneOptions(name=backbone or kind.network or "test_resnet", weights="random")
    return create_method(kind.Options(name=name), create_backbone(options, classes=2, size=size))


def make_batch(b: int = 8, size: int = 64, maps: int | None = None) -> Batch:
    """Discs on the left or on the right in noise, which a person would mark; the first ``maps`` have a map."""
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(b) % 2
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre = size // 4 + label.view(-1, 1, 1) * (size // 2)
    disc = (((x - centre) ** 2 + (y - size // 2) ** 2) < (size // 6) ** 2).float()[:, None]
    image = torch.randn(b, 3, size, size, generator=generator) * 0.3 + 2 * disc
    has = torch.arange(b) < (b if maps is None else maps)
    return Batch(
        image=image.contiguous(memory_format=torch.channels_last),
        label=label,
        saliency=disc * has.view(-1, 1, 1, 1),
        has_saliency=has,
        weight=torch.ones(b),
        index=torch.arange(b),
    )


def refused_pairs() -> str:
    """The list of pairs of a method and a backbone that have no meaning, as the documentation tells it."""
    return (DOCS / "methods.md").read_text().partition("## Pairs that are refused")[2]


def first_convolution(method: Method) -> torch.nn.Parameter:
    return next(module.weight for module in method.backbone.modules() if isinstance(module, torch.nn.Conv2d))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_every_stage_falls_and_its_gradient_reaches_the_backbone(name: str) -> None:
    method, batch = make_method(name), make_batch()
    first = first_convolution(method)
    for stage in method.stages():
        method.begin(stage)
        method.train()
        before = first.detach().clone()
        optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-4)
        losses, gradients = [], []
        for _ in range(25):
            torch.manual_seed(0)
            optimizer.zero_grad()
            parts = method(batch)
            parts["total"].backward()
            optimizer.step()
            losses.append(float(parts["total"].detach()))
            gradients.append(float(first.grad.abs().max()) if first.grad is not None else 0.0)
        assert all(torch.isfinite(torch.tensor(losses)))
        assert losses[-1] < losses[0], stage
        # A map predictor of its own leaves the classifier alone; every other stage trains the backbone.
        own_predictor = stage.predicts == "map" and METHODS[name].network is not None
        assert (min(gradients) > 0 and not torch.equal(first, before)) != own_predictor, stage


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_maps_is_finite_and_the_guidance_is_zero(name: str) -> None:
    method = make_method(name)
    method.begin(method.stages()[-1])
    method.train()
    parts = method(make_batch(maps=0))
    parts["total"].backward()
    assert all(value.isfinite() and value.ndim == 0 for value in parts.values())
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    guidance = {"logit_alignment", "contrastive_embedding"}  # of SAGE; each method's own test names its parts
    assert all(float(parts[part]) == 0 for part in guidance & parts.keys())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_maps_and_black_images_are_finite(name: str, value: float) -> None:
    method, batch = make_method(name), make_batch(4)
    image = batch.image.clone()
    image[:3] = 0  # a batch of equal images only leaves batch norm nothing to divide by, whatever the method
    flat = replace(batch, image=image, saliency=torch.full_like(batch.saliency, value))
    for stage in method.stages():
        method.begin(stage)
        method.train()
        parts = method(flat)
        parts["total"].backward()
        assert all(part.isfinite() for part in parts.values())
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_predict_needs_no_map_and_runs_in_inference_mode(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(4)
    with torch.inference_mode():
        logits = method.predict(batch.image)
        assert logits.shape == (4, 2)
        one_by_one = torch.cat([method.predict(batch.image[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(logits, one_by_one, rtol=1e-3, atol=1e-4)
        with_map = method.predict(batch.image, torch.rand_like(batch.saliency))
    assert torch.equal(with_map, logits) or METHODS[name].maps_at_test != "no"
    assert not method.needs_maps_at_test  # by default


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backbone", ["densenet121", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0"])
def test_a_step_on_other_kinds_of_backbone(name: str, backbone: str) -> None:
    batch, method = make_batch(2), None
    with suppress(UsageError):
        method = make_method(name, backbone)
    if method is None:
        assert name in refused_pairs()
        return
    for stage in method.stages():
        method.begin(stage)
        method.train()
        parts = method(batch)
        parts["total"].backward()
        assert torch.isfinite(parts["total"])
    assert first_convolution(method).grad is not None


@pytest.mark.parametrize("name", METHODS)
def test_trained_and_used_by_the_command_line(name: str, iris: Path, tmp_path: Path, capsys) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores.csv"
    small = ["--device", "cpu", "--set", "data.size=64", "--set", "training.epochs=1", "--set", "training.batch_size=8"]
    small += ["--set", "method.map_epochs=1"] if len(make_method(name).stages()) > 1 else []
    network = ["--weights", "random"] + ([] if METHODS[name].network else ["--backbone", "test_resnet"])
    assert main(["train", "--data", str(iris), "--method", name, *network, *small, "--out", str(run)]) == 0
    parts = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train"]
    assert parts["total"] == pytest.approx(parts["total"])
    assert len(parts) > 1
    assert main(["predict", str(run), "--data", str(iris), "--out", str(scores), "--device", "cpu"]) == 0
    stored = {line.split(",")[0]: line for line in (run / "predictions.csv").read_text().splitlines()[1:]}
    assert len(scores.read_text().splitlines()) == 1 + 48
    assert len(stored) == 24


@pytest.fixture(scope="module")
def settled_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Random weights whose batch norms know their inputs, as those of any trained network do.

    In the 55 blocks of an untrained tf_efficientnet_b7, whose running statistics move by a hundredth a step, logits in
    evaluation mode grow to 1e13 and beyond.
    """
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            model = create_backbone(BackboneOptions(name=name, weights="random"), classes=2, size=64).model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.momentum = None  # the mean over all batches
            with torch.no_grad():
                for _ in range(4):
                    model(torch.randn(8, 3, 64, 64))
            made[name] = folder / f"{name}.safetensors"
            write_tensors(made[name], model.state_dict())
        return made[name]

    return make


@pytest.mark.soak
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_every_backbone_or_is_refused(
    name: str, backbone: str, settled_weights: Callable[[str], Path], iris: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "run"
    weights = str(settled_weights(backbone))
    command = ["train", "--data", str(iris), "--method", name, "--backbone", backbone, "--weights", weights]
    options = ["--set", "data.size=64", "--set", "training.epochs=2", "--set", "training.batch_size=8"]
    code = main([*command, *options, "--device", "cpu", "--out", str(out)])
    if code == 2:
        message = capsys.readouterr().err
        assert message.startswith("lookhere: error: ")
        assert message.count("\n") == 1
        assert name in refused_pairs()
        return
    assert code == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["epoch"] == 2
    assert all(value == value for line in lines for value in line["train"].values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_page_and_its_line(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text()
    kind = METHODS[name]
    assert f"lookhere train --data manifest.csv --method {name}" in page
    options = kind.Options(name=name)
    for option in re.findall(r"`method\.([a-z_]+)", page):
        assert option in type(options).model_fields, f"{name}.md names an option that is not there: {option}"
    assert f"[{name}](methods/{name}.md)" in (DOCS / "methods.md").read_text()
    assert kind.paper
    assert set(kind.guides.split(", ")) <= {"nothing", "input", "map", "embedding", "logits", "gradient"}


def test_guided_mean_counts_samples_without_a_map_as_zero() -> None:
    batch = make_batch(4, maps=2)
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    assert float(guided_mean(values, batch)) == pytest.approx(3 / 4)
    logits = torch.randn(4, 2)
    ce = F.cross_entropy(logits, batch.label, reduction="none")
    assert float(guided_mean(ce, batch)) == pytest.approx(float(ce[:2].sum()) / 4)
