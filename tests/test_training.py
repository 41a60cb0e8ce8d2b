"""Training end to end: what a run leaves behind, and that interruptions change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lookhere.bench.finished import FinishedRun
from lookhere.bench.run import train
from lookhere.errors import DataError, TrainingError, UsageError
from lookhere.evaluation.evaluate import evaluate
from lookhere.evaluation.scores import read_scores
from lookhere.methods import Method
from lookhere.training import fit
from lookhere.training.checkpoint import latest_checkpoint
from lookhere.training.config import Config, load_config
from lookhere.training.devices import resolve_device
from lookhere.training.fit import auroc
from lookhere.training.folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")


def configure(manifest: Path, *settings: str, method: str = "sage", seed: int = 0) -> Config:
    flags = {
        "data.manifest": str(manifest),
        "data.size": 48,
        "method.name": method,
        "backbone.name": "test_resnet",
        "backbone.weights": "random",
        "training.epochs": 3,
        "training.batch_size": 8,
        "training.threads": 1,
        "training.device": "cpu",
        "seed": seed,
    }
    return load_config(None, settings, {k: v for k, v in flags.items() if not any(s.startswith(k) for s in settings)})


@pytest.fixture(scope="module")
def finished(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict[str, Any]]:
    config = configure(iris)
    out = tmp_path_factory.mktemp("runs") / "a"
    return config, out, train(config, out)


def test_a_run_folder_can_be_read_without_the_package(finished: tuple[Config, Path, dict[str, Any]]) -> None:
    config, out, result = finished
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "run.toml",
        "environment.json",
        "metrics.jsonl",
        "weights.safetensors",
        "predictions.csv",
        "result.json",
    }
    assert json.loads((out / "result.json").read_text()) == result
    assert load_config(out / "run.toml") == config
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"total", "cross_entropy", "logit_alignment", "contrastive_embedding"} <= set(lines[0]["train"])
    for line in lines:
        parts = line["train"]
        expected = 0.5 * parts["cross_entropy"] + 0.5 * (parts["logit_alignment"] + parts["contrastive_embedding"])
        assert parts["total"] == pytest.approx(expected, rel=1e-4)
    best = max(lines, key=lambda line: (line["val"]["accuracy"], line["epoch"]))
    assert result["selected_epoch"] == best["epoch"]
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_predictions_and_evaluation_can_be_recomputed(finished: tuple[Config, Path, dict[str, Any]]) -> None:
    config, out, result = finished
    stored = read_scores(out / "predictions.csv")
    assert evaluate(stored, positive=result["positive"]) == result["evaluation"]
    again = FinishedRun.load(out, "cpu").predict(config.data.manifest)
    row = {key: i for i, key in enumerate(again.id)}
    order = [row[key] for key in stored.id]
    np.testing.assert_allclose(again.logits[order], stored.logits, rtol=0, atol=1e-6)
    assert set(stored.split) == {"val", "test"}


def test_predicting_on_a_test_list_alone_knows_which_types_were_seen(
    finished: tuple[Config, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, out, result = finished
    manifest = config.data.manifest
    header, *rows = manifest.read_text().splitlines()
    tests = [row for row in rows if ",test," in row]
    (tmp_path / "test.csv").write_text("\n".join([header, *tests]) + "\n")
    run = FinishedRun.load(out, "cpu")
    scores = run.predict(tmp_path / "test.csv", [f"data.root={manifest.parent}"])
    validation = read_scores(out / "predictions.csv")
    stored = {subset["name"]: subset for subset in result["evaluation"]["subsets"] if subset["split"] == "test"}
    for subset in evaluate(scores, positive=result["positive"], validation=validation)["subsets"]:
        expected = stored.pop(subset["name"])
        assert (subset["positives"], subset["types"]) == (expected["positives"], expected["types"])
        assert subset["metrics"]["auroc"]["value"] == pytest.approx(expected["metrics"]["auroc"]["value"])
    assert not stored
    for setting in ("data.size=64", "training.epochs=3", "data.positive=x"):
        with pytest.raises(UsageError, match="is fixed by the training"):
            run.predict(manifest, [setting])


def test_prediction_decodes_as_training_did(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["image,label,split"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 4095, (48, 48), np.uint16)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'attack' if i % 2 else 'live'},{('train', 'train', 'val', 'test')[i // 3]}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    config = configure(tmp_path / "m.csv", "data.bit_depth=12", "training.epochs=1", method="cross-entropy")
    train(config, tmp_path / "run")
    stored = read_scores(tmp_path / "run" / "predictions.csv")
    scores = FinishedRun.load(tmp_path / "run", "cpu").predict(tmp_path / "m.csv")
    row = {key: i for i, key in enumerate(scores.id)}
    np.testing.assert_allclose(scores.logits[[row[key] for key in stored.id]], stored.logits, atol=1e-6)


def test_an_epoch_interrupted_before_its_checkpoint_is_recorded_once(
    iris: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    save = fit.save_checkpoint

    def interrupted(folder: Path, position: Any, *rest: Any) -> None:
        if position.epoch == 2:
            raise KeyboardInterrupt
        save(folder, position, *rest)

    config = configure(iris, method="cross-entropy")
    monkeypatch.setattr(fit, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    finished: tuple[Config, Path, dict[str, Any]], iris: Path, tmp_path: Path
) -> None:
    config, out, _ = finished
    train(config, tmp_path / "again")
    train(configure(iris, seed=1), tmp_path / "other")
    first, again, other = (
        (p / "weights.safetensors").read_bytes() for p in (out, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


def test_killed_and_resumed_is_bit_identical(finished: tuple[Config, Path, dict[str, Any]], tmp_path: Path) -> None:
    config, out, _ = finished
    (tmp_path / "run.toml").write_text(config.to_toml())
    command = [sys.executable, "-m", "lookhere", "train", "--config", str(tmp_path / "run.toml"), "--out"]
    killed = tmp_path / "killed"
    for epoch in (1, 2):
        process = subprocess.Popen([*command, str(killed), "--resume"], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while not (killed / "checkpoints" / f"stage0-{epoch:06d}").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (killed / "result.json").exists()
    done = subprocess.run([*command, str(killed), "--resume"], capture_output=True, text=True, check=True)
    assert "AUROC" in done.stdout
    for name in ("weights.safetensors", "predictions.csv"):
        assert (killed / name).read_bytes() == (out / name).read_bytes(), name
    epochs = [json.loads(line)["epoch"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3]


def test_a_stop_signal_ends_with_its_exit_code_and_can_be_resumed(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(configure(iris, "training.epochs=500").to_toml())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lookhere", "train", "--config", str(tmp_path / "run.toml"), "--out", str(out)]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen([*command, "--resume"], stderr=subprocess.PIPE, text=True)
        before = set(out.glob("checkpoints/*-??????"))
        while not set(out.glob("checkpoints/*-??????")) - before:  # until it has trained an epoch of its own
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in errors
    assert latest_checkpoint(out / "checkpoints") is not None


def test_resume_returns_a_finished_run_and_other_configurations_are_refused(
    finished: tuple[Config, Path, dict[str, Any]], iris: Path, tmp_path: Path
) -> None:
    config, out, result = finished
    written = (out / "weights.safetensors").stat().st_mtime_ns
    assert train(config, out, resume=True) == result
    assert (out / "weights.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="holds a finished run of this configuration; --resume"):
        train(config, out)
    with pytest.raises(UsageError, match=r"differs in method\.alpha \(0\.5 there, 0\.4 here\)"):
        train(configure(iris, "method.alpha=0.4"), out, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        train(config, tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        train(config, tmp_path / "notes.txt")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="does not fit"):
        train(configure(iris, f"backbone.weights={tmp_path / 'bad.safetensors'}"), tmp_path / "free")
    assert not (tmp_path / "free").exists()
    with (
        RunFolder(tmp_path / "busy").start(config, "x", resume=False),
        pytest.raises(UsageError, match="another process"),
    ):
        train(config, tmp_path / "busy")


def test_a_damaged_checkpoint_is_passed_over(iris: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    config = configure(iris, method="cross-entropy")
    train(config, tmp_path / "whole")

    def fail_at_third(epoch: int) -> None:
        raise KeyboardInterrupt

    from lookhere.data.batches import Batches

    original = Batches.epoch
    stop = lambda self, epoch=0, *rest, **more: (  # noqa: E731
        fail_at_third(epoch) if epoch == 3 else original(self, epoch, *rest, **more)
    )
    monkeypatch.setattr(Batches, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    newest = tmp_path / "cut" / "checkpoints" / "stage0-000002" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    train(config, tmp_path / "cut", resume=True)
    assert "SHA-256 is not the recorded one; going back" in capsys.readouterr().err
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_loss_that_is_not_finite_stops_with_its_samples(iris: Path, tmp_path: Path, monkeypatch: Any) -> None:
    steps = 0
    forward = Method.forward

    def sour(self: Method, batch: Any) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        parts = forward(self, batch)
        return {name: value * float("nan") for name, value in parts.items()} if steps == 5 else parts

    monkeypatch.setattr(Method, "forward", sour)
    with pytest.raises(TrainingError) as error:
        train(configure(iris, method="cross-entropy"), tmp_path / "run")
    assert "not finite at epoch 2, step 2: total nan, cross_entropy nan. Samples: images/train" in str(error.value)
    assert (tmp_path / "run" / "checkpoints" / "stage0-000001" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("setting", ["training.precision=bfloat16", "training.optimizer=adamw", "training.select=last"])
def test_options_of_the_optimisation_train(iris: Path, tmp_path: Path, setting: str) -> None:
    result = train(configure(iris, setting, "training.epochs=2"), tmp_path / "run")
    assert result["evaluation"]["subsets"][0]["metrics"]["auroc"]["value"] is not None
    if setting.endswith("last"):
        assert result["selected_epoch"] == 2


def test_a_batch_of_one_is_left_out_and_maps_may_be_few(iris: Path, tmp_path: Path) -> None:
    result = train(configure(iris, "training.batch_size=23", "training.epochs=1"), tmp_path / "run")
    assert result["data"]["maps"]["train"] == 12
    with pytest.raises(TrainingError, match=r"raise training\.batch_size or data\.size"):
        train(configure(iris, "training.batch_size=1", "data.size=16", "method.views.kernel=3"), tmp_path / "one")


def test_no_validation_rows_is_an_error_that_says_what_to_do(iris: Path, tmp_path: Path) -> None:
    rows = [line for line in iris.read_text().splitlines() if ",val," not in line]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(rows) + "\n")
    root = f"data.root={iris.parent}"
    one_class = tmp_path / "one.csv"
    one_class.write_text("".join(f"{row}\n" for row in iris.read_text().splitlines() if ",attack,val" not in row))
    with pytest.raises(DataError, match="split val has no row of class attack"):
        train(configure(one_class, root, "training.select=val_auroc"), tmp_path / "c")
    with pytest.raises(DataError, match="val"):
        train(configure(manifest, root), tmp_path / "a")
    result = train(configure(manifest, root, "training.select=last", "training.epochs=1"), tmp_path / "b")
    assert result["evaluation"]["threshold"]["value"] is None


def test_guidance_without_any_map_is_refused(iris: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    header, *rows = iris.read_text().splitlines()
    blank = [",".join([*row.split(",")[:3], "", *row.split(",")[4:]]) for row in rows]
    manifest.write_text("\n".join([header, *blank]) + "\n")
    root = f"data.root={iris.parent}"
    with pytest.raises(DataError, match="no row in train has a saliency map, which method sage needs"):
        train(configure(manifest, root), tmp_path / "a")
    train(configure(manifest, root, "training.epochs=1", method="cross-entropy"), tmp_path / "b")


def test_no_such_device_lists_those_that_are_there() -> None:
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(UsageError, match=rf"no device '{name}' here .*there is: "):
            resolve_device(name)


def test_validation_auroc_is_scikit_learns_and_none_where_undefined() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    assert auroc(logits, torch.tensor([0, 1, 1, 0])) == 0.75
    assert auroc(logits, torch.zeros(4, dtype=torch.int64)) is None
