"""``training.view_memory``: less of it, and the same numbers to the last bit."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from lookhere.backbone import Backbone, Tapped
from lookhere.bench.run import train
from lookhere.errors import TrainingError, UsageError
from lookhere.methods import create_method
from lookhere.passes import find_blocks, forward_views
from lookhere.training.config import load_config
from lookhere.training.fit import explained

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")
BLOCKS = {
    "resnet50": (16, {"Bottleneck"}),
    "densenet121": (58, {"DenseLayer"}),
    "tf_efficientnet_b0": (16, {"DepthwiseSeparableConv", "InvertedResidual"}),
    "swin_tiny_patch4_window7_224": (12, {"SwinTransformerBlock"}),
}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, as it is started in its folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return import_module("memory")


def network(name: str) -> nn.Module:
    """A network that draws random numbers in training: dropout, and whole branches where it has that."""
    torch.manual_seed(0)
    more: dict[str, Any] = {"img_size": 64} if "swin" in name else {}
    more |= {} if "densenet" in name else {"drop_path_rate": 0.2}
    more |= {"zero_init_last": False} if "resnet" in name else {}
    return timm.create_model(name, num_classes=3, drop_rate=0.2, **more).double()


def one_step(model: nn.Module, batch_norm: Any, memory: Any, half: bool = False) -> dict[str, torch.Tensor]:
    """Losses, gradients and running statistics of a pass and its backward pass."""
    backbone = Backbone(model).train()
    backbone.view_memory = memory
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    side = 64 if "Swin" in type(model).__name__ else 32
    views = [torch.randn(n, 3, side, side, generator=generator, dtype=dtype) for n in (3, 2, 2, 2)]
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features = forward_views(backbone, views, batch_norm)
    assert not any("forward" in vars(module) for module in model.modules())
    losses = torch.stack([f.logits.square().sum() + f.embedding.sin().sum() for f in features])
    losses.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": losses.detach(), **gradients, **{f"buffer {name}": b for name, b in model.named_buffers()}}


@pytest.mark.parametrize(
    ("name", "batch_norm"),
    [*((name, "joint") for name in BLOCKS), ("tf_efficientnet_b0", "per_view"), ("tf_efficientnet_b0", "clean")],
)
def test_what_is_computed_again_is_the_same_to_the_bit(name: str, batch_norm: str) -> None:
    plain, again = (one_step(network(name), batch_norm, memory) for memory in ("high", "low"))
    assert all(value.isfinite().all() and value.abs().max() > 0 for key, value in plain.items() if "." in key)
    assert [key for key in plain if not torch.equal(plain[key], again[key])] == []


def test_in_bfloat16_too() -> None:
    steps = [
        one_step(network("resnet18").float(), mode, m, True) for mode in ("joint", "per_view") for m in ("high", "low")
    ]
    for plain, again in zip(steps[::2], steps[1::2], strict=True):
        assert [key for key in plain if not torch.equal(plain[key], again[key])] == []


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_those_that_a_network_is_made_of(name: str) -> None:
    blocks = find_blocks(timm.create_model(name))
    assert (len(blocks), {type(block).__name__ for block in blocks}) == BLOCKS[name]


def test_bytes_counted_without_values_are_those_counted_with_them_and_one_view_is_in_memory(memory: Any) -> None:
    rows = memory.measure(["test_resnet"], 96, 8, modes=["per_view"])
    assert rows == memory.measure(["test_resnet"], 96, 8, "cpu", modes=["per_view"])
    plain, high, low = (row["over_cross_entropy"] for row in rows)
    assert (plain, low < 1.3, high > 3) == (1, True, True)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "tf_efficientnet_b7", "swin_tiny_patch4_window7_224"])
def test_the_papers_networks_need_little_more_than_cross_entropy(name: str, memory: Any) -> None:
    low = [row["over_cross_entropy"] for row in memory.measure([name]) if row["view_memory"] == "low"]
    assert max(low) <= 1.6


@pytest.mark.parametrize("method", ["sage", "actdiff", "corm", "background-swap"])
@pytest.mark.parametrize("batch_norm", ["joint", "per_view"])
def test_a_training_gives_the_same_weights_and_is_the_same_run(
    iris: Path, tmp_path: Path, method: str, batch_norm: str
) -> None:
    found = []
    for memory in ("high", "low"):
        settings = ["data.size=48", "backbone.weights=random", "training.epochs=1", "training.batch_size=8"]
        settings += ["training.threads=1", "training.device=cpu", f"method.batch_norm={batch_norm}"]
        flags = {"data.manifest": str(iris), "method.name": method, "backbone.name": "test_resnet"}
        config = load_config(None, settings, {**flags, "training.view_memory": memory})
        result = train(config, tmp_path / memory)
        found.append((load_file(tmp_path / memory / "weights.safetensors"), result["identity"]))
    (high, identity), (low, same) = found
    assert identity == same
    assert [name for name in high if not torch.equal(high[name], low[name])] == []


def test_a_network_that_cannot_be_computed_again_is_refused() -> None:
    views = [torch.randn(2, 3, 4, 4)] * 2
    plain = Tapped(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)))
    plain.view_memory = "low"
    with pytest.raises(
        UsageError, match=r'view_memory: "low" .*not made of blocks; take "high", or another batch_norm'
    ):
        forward_views(plain, views, "joint")
    assert len(forward_views(plain, views, "per_view")) == 2

    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x.mul_(2)).relu())

    blocks = Tapped(nn.Sequential(nn.Conv2d(3, 3, 1), Overwriting(), nn.Flatten(), nn.Linear(48, 2)))
    blocks.view_memory = "low"
    loss = forward_views(blocks, views, "joint")[0].logits.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # and no wrong gradient
        loss.backward()


def test_running_out_of_memory_says_what_to_change() -> None:
    def message(name: str, stage: int = -1, **options: Any) -> str:
        config = load_config(flags={"data.manifest": "m.csv", "method.name": name, **options})
        method = create_method(config.method, Backbone(timm.create_model("test_resnet", num_classes=2)))
        method.begin(method.stages()[stage])
        with pytest.raises(TrainingError) as error, explained(config, method):
            raise torch.OutOfMemoryError("out of memory")
        return str(error.value)

    head = "out of memory with batches of 20 images of 224 px in"
    spare = 'set training.view_memory = "low", or '
    assert message("cross-entropy") == f"{head} 1 view(s) each; lower training.batch_size or data.size"
    assert message("sage") == f"{head} 4 view(s) each; {spare}lower training.batch_size or data.size"
    assert spare not in message("sage", **{"training.view_memory": "low"})
    assert f"4 view(s) each; {spare}" in message("mentor", **{"method.then": "sage"})
    learns = "out of memory with batches of 4 images of 224 px in 1 view(s) each; lower method.map_batch_size or"
    assert message("mentor", 0, **{"method.then": "sage"}).startswith(learns)
