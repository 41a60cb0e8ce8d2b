"""MENTOR: two stages on one network, and what passes from the first to the second."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lookhere.batch import Batch
from lookhere.bench.finished import FinishedRun
from lookhere.bench.run import build_method, train
from lookhere.data.cache import load_dataset
from lookhere.errors import UsageError
from lookhere.methods import METHODS, Method, Stage
from lookhere.methods.base import CrossEntropyOptions
from lookhere.methods.mentor import Mentor, MentorOptions
from lookhere.training import fit
from lookhere.training.checkpoint import write_tensors
from lookhere.training.config import Config, TrainingOptions, load_config
from lookhere.training.fit import make_optimizer
from lookhere.training.prediction import make_batches, map_error
from lookhere.weights import BackboneOptions, create_backbone
from small_batch import small_batch

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")
MAP, CLASSIFY = "map", "classify"


def make_mentor(**options: Any) -> Mentor:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneOptions(name="test_resnet", weights="random"), classes=3, size=32)
    return Mentor(backbone, MentorOptions(**options)).double()


def make_batch(b: int = 4, maps: int = 3) -> Batch:
    return small_batch(b, maps, 32, [1.0, 2.0, 0.5, 1.0])


def configure(manifest: Path, *settings: str) -> Config:
    flags = {
        "data.manifest": str(manifest),
        "data.size": 32,
        "method.name": "mentor",
        "method.map_epochs": 3,
        "backbone.name": "test_resnet",
        "backbone.weights": "random",
        "training.epochs": 3,
        "training.batch_size": 8,
        "training.threads": 1,
        "training.device": "cpu",
    }
    return load_config(None, settings, {k: v for k, v in flags.items() if not any(s.startswith(k) for s in settings)})


@pytest.fixture(scope="module")
def finished(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    config, out = configure(iris), tmp_path_factory.mktemp("mentor") / "run"
    train(config, out)
    return config, out


def test_the_map_stage_is_the_squared_error_of_a_sigmoid() -> None:
    method, batch = make_mentor().train(), make_batch()
    drawn: list[np.ndarray] = []
    method.decoder.register_forward_hook(lambda *given: drawn.append(given[2].detach().numpy()))
    method.begin(method.stages()[0])
    parts = method(batch)
    total = 0.0
    for i in range(3):
        pairs = zip(drawn[0][i].flat, batch.saliency[i].numpy().flat, strict=True)
        errors = [(1 / (1 + np.exp(-m)) - s) ** 2 for m, s in pairs]
        total += float(batch.weight[i]) * sum(errors) / len(errors)
    assert float(parts["total"].detach()) == pytest.approx(total / float(batch.weight.sum()), abs=1e-9)
    assert set(parts) == {"total", "map_mse"}


@pytest.mark.parametrize(
    ("then", "options"),
    [("cross-entropy", {}), ("cyborg", {"alpha": 0.2}), ("sage", {"alpha": 0.2, "tau": 3.0, "views": {"kernel": 3}})],
)
def test_the_second_stage_is_the_other_method(then: str, options: dict[str, Any]) -> None:
    method, batch = make_mentor(then=then, **({then: options} if options else {})).train(), make_batch()
    method.begin(method.stages()[1])
    kind = METHODS[then]
    alone = kind(method.backbone, kind.Options(name=then, **options)).double()
    expected = alone(batch)
    parts = method(batch)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    default = kind(method.backbone, kind.Options(name=then)).double()
    assert (float(default(batch)["total"]) == float(parts["total"])) == (not options)
    torch.testing.assert_close(method.eval().predict(batch.image), method.backbone.model(batch.image))


def test_each_stage_trains_its_own_parts_and_nothing_leaks() -> None:
    method, batch = make_mentor(), make_batch()
    stages = method.stages()
    for stage in (*stages, *stages):
        method.begin(stage)
        method.zero_grad(set_to_none=True)
        method.train()(batch)["total"].backward()
        head = method.backbone.model.get_classifier().weight.grad
        decoder = [p.grad for p in method.decoder.parameters()]
        assert (head is None) == (stage.name == MAP)
        assert [g is None for g in decoder] == [stage.name == CLASSIFY] * len(decoder)
        assert float(method.backbone.model.conv1[0].weight.grad.abs().max()) > 0
        optimizer = make_optimizer(method, TrainingOptions())
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in method.parameters() if p.requires_grad}
        left_out = method.decoder.parameters() if stage.name == CLASSIFY else method.backbone.model.fc.parameters()
        assert not trained & {id(p) for p in left_out}
        statistics = {name: value.clone() for name, value in method.decoder.named_buffers()}
        method(batch)
        moved = any(not torch.equal(value, statistics[name]) for name, value in method.decoder.named_buffers())
        assert moved == (stage.name == MAP)


@pytest.mark.parametrize("then", ["cross-entropy", "cyborg", "sage"])
def test_the_state_holds_every_weight_once(then: str, tmp_path: Path) -> None:
    method = make_mentor(then=then)
    state = method.state_dict()
    assert {name.partition(".")[0] for name in state} == {"backbone", "decoder"}
    addresses = [value.data_ptr() for value in state.values() if value.numel() > 1]
    assert len(addresses) == len(set(addresses))
    assert len(list(method.parameters())) == len([name for name, _ in method.named_parameters(remove_duplicate=False)])
    write_tensors(tmp_path / "w.safetensors", state)
    torch.manual_seed(9)
    backbone = create_backbone(BackboneOptions(name="test_resnet", weights="random"), classes=3, size=32)
    other = Mentor(backbone, MentorOptions(then=then)).double()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    batch = make_batch()
    torch.testing.assert_close(other.eval().predict(batch.image), method.eval().predict(batch.image))
    torch.testing.assert_close(other.train()(batch)["total"], method.train()(batch)["total"])


def test_both_stages_are_recorded_and_the_map_error_falls(finished: tuple[Config, Path]) -> None:
    _, out = finished
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [(MAP, 1), (MAP, 2), (MAP, 3)] + [
        (CLASSIFY, epoch) for epoch in (1, 2, 3)
    ]
    maps = lines[:3]
    assert maps[-1]["train"]["map_mse"] < maps[0]["train"]["map_mse"]
    assert {line["learning_rate"] for line in maps} == {1e-4}
    assert set(maps[0]["train"]) == {"total", "map_mse"}
    assert set(lines[3]["train"]) == {"total", "cross_entropy"}
    result = json.loads((out / "result.json").read_text())
    assert {"weights.safetensors", "weights-map.safetensors"} <= set(result["files"])


def test_maps_are_predicted_by_the_weights_of_the_map_stage(finished: tuple[Config, Path]) -> None:
    config, out = finished
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    errors = {}
    for kind in ("map", "label"):
        run = FinishedRun.load(out, "cpu", predicts=kind)
        assert run.weights.name == ("weights-map.safetensors" if kind == "map" else "weights.safetensors")
        dataset = load_dataset(config.data, config.saliency)
        rows = make_batches(dataset, dataset.rows("val", guided=True), run.method, config.training, torch.device("cpu"))
        errors[kind] = map_error(run.method, rows)
    assert errors["map"] == pytest.approx(min(line["val"]["map_mse"] for line in lines[:3]), abs=1e-7)
    assert errors["label"] != pytest.approx(errors["map"], abs=1e-5)
    content = bytearray((out / "weights-map.safetensors").read_bytes())
    content[-5] ^= 1
    copy = out.with_name("damaged")
    copy.mkdir()
    for file in out.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "weights-map.safetensors").write_bytes(content)
    FinishedRun.load(copy, "cpu")
    with pytest.raises(UsageError, match=r"weights-map\.safetensors: damaged"):
        FinishedRun.load(copy, "cpu", predicts="map")


def test_the_second_stage_starts_from_the_selected_map_epoch_with_a_fresh_head(
    iris: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    config = configure(iris, "training.epochs=1")
    starts: dict[str, dict[str, torch.Tensor]] = {}
    begin = Mentor.begin

    def watch(self: Mentor, stage: Stage) -> None:
        starts[stage.name] = {name: value.clone() for name, value in self.state_dict().items()}
        begin(self, stage)

    saved: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    save = fit.save_checkpoint

    def remember(folder: Path, position: Any, model: Method, optimizer: Any) -> None:
        saved[position.stage, position.epoch] = {name: value.clone() for name, value in model.state_dict().items()}
        save(folder, position, model, optimizer)

    errors = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(Mentor, "begin", watch)
    monkeypatch.setattr(fit, "save_checkpoint", remember)
    monkeypatch.setattr(fit, "map_error", lambda *_: next(errors))
    train(config, tmp_path / "run")
    selected, stored = saved[0, 2], load_file(tmp_path / "run" / "weights-map.safetensors")
    assert starts[CLASSIFY].keys() == selected.keys() == stored.keys()
    for name, value in starts[CLASSIFY].items():
        assert torch.equal(value, selected[name])
        assert torch.equal(value, stored[name])
    assert any(not torch.equal(value, saved[0, 3][name]) for name, value in selected.items())
    torch.manual_seed(config.seed)
    untrained = build_method(config, 2).state_dict()
    for name in ("backbone.model.fc.weight", "backbone.model.fc.bias"):
        assert torch.equal(starts[CLASSIFY][name], untrained[name])
    final = load_file(tmp_path / "run" / "weights.safetensors")
    for name, value in final.items():
        if name.startswith("decoder."):
            assert torch.equal(value, stored[name])
    assert not torch.equal(final["backbone.model.fc.weight"], untrained["backbone.model.fc.weight"])


@pytest.mark.parametrize("where", [(0, 2), (1, 1), (1, 3)])
def test_interrupted_in_either_stage_and_resumed_is_bit_identical(
    where: tuple[int, int], finished: tuple[Config, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    config, out = finished
    save = fit.save_checkpoint

    def interrupted(folder: Path, position: Any, *rest: Any) -> None:
        if (position.stage, position.epoch) == where:
            raise KeyboardInterrupt
        save(folder, position, *rest)

    monkeypatch.setattr(fit, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True)
    for name in ("weights.safetensors", "weights-map.safetensors", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (out / name).read_bytes(), name
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 1, 2, 3]


def test_without_maps_in_val_the_last_epoch_is_kept_with_a_warning(iris: Path, tmp_path: Path) -> None:
    header, *rows = iris.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    blank = [",".join([*c[:3], "", *c[4:]]) if c[2] == "val" else ",".join(c) for c in cells]
    (tmp_path / "m.csv").write_text("\n".join([header, *blank]) + "\n")
    settings = (f"data.root={iris.parent}", "method.map_epochs=2", "training.epochs=1", 'method.map_decoder="unet"')
    config = configure(tmp_path / "m.csv", *settings)
    with pytest.warns(UserWarning, match="split val has no map to select an epoch of stage map by: its last one"):
        train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["val"] == {}
    # A manifest without any map can be predicted on.
    blank = [",".join([*c[:3], "", *c[4:]]) for c in cells]
    (tmp_path / "none.csv").write_text("\n".join([header, *blank]) + "\n")
    run = FinishedRun.load(tmp_path / "run", "cpu")
    assert len(run.predict(tmp_path / "none.csv", [f"data.root={iris.parent}"])) == 48


def test_what_cannot_work_is_refused_before_anything_is_written(iris: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 32, got 80 x 80"):
        train(configure(iris, "data.size=80"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    build_method(configure(iris, "data.size=80", 'method.map_decoder="unet"'), 2)
    with pytest.raises(UsageError, match=r"method\.sage\.views\.kernel: 71 does not fit images of 32 pixels"):
        configure(iris, "method.then=sage", "method.sage.views.kernel=71")
    with pytest.raises(UsageError, match=r"method\.cyborg\.alfa: there is no such option"):
        configure(iris, "method.then=cyborg", "method.cyborg.alfa=0.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the blur of a stage that is not there is no matter
        make_mentor(then="cyborg")
    method = Method(make_mentor().backbone, CrossEntropyOptions())
    with pytest.raises(UsageError, match="does not learn to predict maps; train mentor"):
        method.predict_map(make_batch().image)
