"""``training.precision = "auto"``: a trial that leaves no trace, and a choice that stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lookhere.batch import Batch
from lookhere.bench.run import build_method, train
from lookhere.methods import Method
from lookhere.training import fit, precision
from lookhere.training.config import Config, load_config

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")


def configure(manifest: Path | str, method: str = "sage", arithmetic: str = "auto", **more: object) -> Config:
    flags = {"data.manifest": str(manifest), "method.name": method, "training.precision": arithmetic, **more}
    flags |= {"data.size": 48, "backbone.name": "test_resnet", "backbone.weights": "random", "training.epochs": 2}
    return load_config(flags={**flags, "training.batch_size": 8, "training.threads": 1, "training.device": "cpu"})


def make_batch(b: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image=torch.randn(b, 3, 48, 48, generator=generator),
        label=torch.arange(b) % 2,
        saliency=torch.rand(b, 1, 48, 48, generator=generator),
        has_saliency=torch.ones(b, dtype=torch.bool),
        weight=torch.ones(b),
        index=torch.arange(b),
    )


def test_the_trial_leaves_no_trace() -> None:
    method = build_method(configure("m.csv", **{"method.views.degrade": "noise"}), classes=2)
    method.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert precision.compare_precisions(method, make_batch()) > 0
    assert torch.equal(torch.rand(2), expected)
    assert not method.training
    assert all(p.grad is None for p in method.parameters())
    after = method.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_median_of_the_pairs_after_the_first_decides(monkeypatch: Any) -> None:
    seen: list[bool] = []
    times = iter([0, 9, 0, 1, *(t for half in (4, 1, 2) for t in (0, half, 0, 5))])

    def forward(self: Method, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"total": next(self.parameters()).sum()}

    method = build_method(configure("m.csv", "cross-entropy"), classes=2)
    monkeypatch.setattr(Method, "forward", forward)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(times))
    assert precision.compare_precisions(method, make_batch()) == pytest.approx(2 / 5)
    assert seen == [True, False] * 4


@pytest.mark.parametrize(("ratio", "chosen"), [(0.94, "bfloat16"), (0.96, "float32")])
def test_the_choice_is_told_used_and_kept(
    iris: Path, tmp_path: Path, monkeypatch: Any, ratio: float, chosen: str
) -> None:
    used: list[str] = []
    start, save = fit.start_accelerator, fit.save_checkpoint
    monkeypatch.setattr(precision, "compare_precisions", lambda *_: ratio)
    monkeypatch.setattr(fit, "start_accelerator", lambda options, kind: used.append(kind) or start(options, kind))

    def stop(*given: Any) -> None:
        save(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train(configure(iris), tmp_path / "run")
    monkeypatch.setattr(fit, "save_checkpoint", save)
    monkeypatch.setattr(precision, "compare_precisions", lambda *_: 1.9 - ratio)  # it would choose the other one now
    result = train(configure(iris), tmp_path / "run", resume=True)
    assert used == [chosen, chosen]
    assert result["precision_used"] == chosen
    fixed = train(configure(iris, arithmetic=chosen), tmp_path / "fixed")
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        tmp_path / "fixed" / "weights.safetensors"
    ).read_bytes()
    assert fixed["precision_used"] == chosen


def test_the_trial_is_of_the_last_stage_and_does_not_change_the_first(iris: Path, tmp_path: Path) -> None:
    common = {"method.map_epochs": 1, "data.size": 64}
    stages: list[str] = []

    def compared(method: Method, batch: Batch) -> float:
        stages.append(method.stage.name)
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "compare_precisions", compared)
        config = configure(iris, "mentor", **common)
        train(config.model_copy(update={"data": config.data.model_copy(update={"size": 64})}), tmp_path / "auto")
    assert stages == ["classify"]
    lines = (tmp_path / "auto" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["map", "classify", "classify"]


@pytest.mark.parametrize("name", ["sage", "actdiff", "corm", "background-swap"])
def test_losses_are_float32_in_bfloat16(name: str) -> None:
    method = build_method(configure("m.csv", name), classes=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.backbone(make_batch().image).logits.dtype == torch.bfloat16
        half = method(make_batch())
    assert {value.dtype for value in half.values()} == {torch.float32}
