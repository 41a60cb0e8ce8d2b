"""One training shared by two processes: the same gradients and metrics, one run folder, and no hang when one ends."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shared_steps
from lookhere import launch, processes
from lookhere.bench.finished import FinishedRun
from lookhere.bench.run import train
from lookhere.bench.study import prepare
from lookhere.data.batches import Batches
from lookhere.errors import UsageError
from lookhere.evaluation.scores import read_scores
from lookhere.methods import METHODS
from lookhere.training.checkpoint import latest_checkpoint
from lookhere.training.config import load_config
from lookhere.training.devices import resolve_device
from lookhere.training.fit import epoch_seed

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run two processes to their end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def start_pair(*arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Start two processes without anybody to look after them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "lookhere", *map(str, arguments)],
            env={**ENVIRONMENT, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def configure(manifest: Path, *settings: str) -> list[str]:
    """Arguments of a small training."""
    common = ["data.size=64", "training.batch_size=5", "training.threads=1", "backbone.weights=random", *settings]
    return ["train", "--data", str(manifest), "--device", "cpu", *(word for one in common for word in ("--set", one))]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("steps")
    done = torchrun(shared_steps.__file__, folder)
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookhere.methods.actdiff.shuffle_outside", None)  # to be restored
        patch.setattr("lookhere.methods.corm.noise_outside", None)
        return shared_steps.everything(shared_steps.SAME)


@pytest.mark.parametrize("case", shared_steps.SAME)
def test_two_processes_take_the_steps_of_one(case: str, both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert max(float(one["gradient"].abs().max()) for one in alone[case]) > 1e-3
    for one, first, second in zip(alone[case], both[0][case], both[1][case], strict=True):
        for found in (first, second):
            torch.testing.assert_close(found["gradient"], one["gradient"], rtol=1e-9, atol=1e-12)
            losses = [name for name in one if name not in ("margin", "active_triplets", "sigma")]
            torch.testing.assert_close(
                {name: found[name] for name in losses}, {name: one[name] for name in losses}, rtol=1e-9, atol=1e-12
            )


def test_in_float32_too(both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for one, first in zip(alone["sage in float32"], both[0]["sage in float32"], strict=True):
        torch.testing.assert_close(first["gradient"], one["gradient"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["joint", "per_view"])
def test_views_that_are_computed_again_change_no_gradient(mode: str, both: list[dict[str, Any]]) -> None:
    for found in both:
        for low, high in zip(found[f"sage {mode}, little memory"], found["sage"], strict=True):
            torch.testing.assert_close(low["gradient"], high["gradient"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", shared_steps.DRAWN)
def test_partners_of_the_share_give_every_process_the_same_gradient(case: str, both: list[dict[str, Any]]) -> None:
    for first, second in zip(both[0][case], both[1][case], strict=True):
        torch.testing.assert_close(first["gradient"], second["gradient"], rtol=0, atol=0)
        assert first["gradient"].isfinite().all()


def test_predictions_are_those_of_one_process_to_the_bit(both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    logits, labels, seen = alone["predictions"]
    assert seen == len(labels) == len(shared_steps.MAPS)
    for found in both:
        assert torch.equal(found["predictions"][0], logits)
        assert torch.equal(found["predictions"][1], labels)
    assert [found["predictions"][2] for found in both] == [6, 4]  # whole batches of three


def test_a_mean_counts_the_elements_of_all(both: list[dict[str, Any]]) -> None:
    assert [float(found["mean of some"]) for found in both] == [1, 1]
    assert float(processes.mean(torch.tensor([1.0, 2.0]))) == 1.5


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shares_are_the_batches_of_one_process(parts: int) -> None:
    dataset = shared_steps.make_dataset()

    def epoch(part: int, parts: int) -> list[Any]:
        common = {"batch_size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3, "shuffle_seed": 3, "missing": "borrow"}
        return list(Batches(dataset, np.arange(10), **common, part=part, parts=parts).epoch(2))

    for whole, *mine in zip(epoch(0, 1), *(epoch(part, parts) for part in range(parts)), strict=True):
        for part, share in enumerate(mine):
            n = len(range(part, len(whole), parts))
            for name in ("image", "label", "saliency", "has_saliency", "weight", "index"):
                assert torch.equal(getattr(share, name)[:n], getattr(whole, name)[part::parts])
            if parts == 1:
                continue
            assert float(share.total_weight) == float(whole.weight.sum())
            assert len(share) == max(n, 2)
            assert len(set(share.index.tolist())) == len(share)
            assert set(share.index.tolist()) <= set(whole.index.tolist())
            assert not any(getattr(share, name)[n:].any() for name in ("weight", "saliency", "has_saliency"))


@pytest.mark.parametrize("name", [*METHODS, "sage with the batch's margin"])
def test_methods_meet_equally_often_whatever_the_samples_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_methods import make_batch, make_method

    method = make_method(name.partition(" ")[0])
    if name not in METHODS:
        method.options = method.options.model_copy(update={"margin": "batch"})
    meetings = []
    monkeypatch.setattr(processes, "total", lambda value: meetings.append("total") or value)
    monkeypatch.setattr(processes, "mean", lambda values: meetings.append("mean") or values.sum() / max(len(values), 1))
    for stage in method.stages():
        method.begin(stage)
        found = []
        for batch in (make_batch(4), make_batch(4, maps=1), make_batch(4, maps=0), make_batch(2, maps=0)):
            object.__setattr__(batch, "total_weight", torch.tensor(4.0))
            method(batch)
            found.append(list(meetings))
            meetings.clear()
        assert found[0]
        assert all(one == found[0] for one in found)


def test_a_training_by_two_processes_leaves_the_folder_of_one(iris: Path, tmp_path: Path) -> None:
    options = configure(
        iris, "method.name=mentor", "backbone.name=test_efficientnet", "training.epochs=2", "method.map_epochs=1"
    )
    done = torchrun("-m", "lookhere", *options, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert "Warning" not in done.stderr
    two = json.loads((tmp_path / "two/result.json").read_text())
    one = train(load_config(tmp_path / "two/run.toml"), tmp_path / "one")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    assert two.keys() == one.keys()
    assert two["identity"] == one["identity"]
    assert (two["processes"], one["processes"]) == (2, 1)
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    assert (len(two["notes"]), len(one["notes"])) == (1, 0)
    written = read_scores(tmp_path / "two/predictions.csv")
    run = FinishedRun.load(tmp_path / "two", "cpu")
    again = run.predict(iris)
    order = {id: row for row, id in enumerate(again.id)}
    rows = [order[id] for id in written.id]
    assert len(set(rows)) == len(rows) == 8 + 16
    np.testing.assert_allclose(again.logits[rows], written.logits, rtol=1e-5, atol=1e-6)


def test_if_one_is_killed_the_other_ends_and_one_alone_can_go_on(iris: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = configure(iris, "backbone.name=test_resnet", "training.epochs=30", "training.precision=bfloat16")
    first, second = start_pair(*options, "--out", out)
    try:
        while not list(out.glob("checkpoints/*-??????")):
            time.sleep(0.02)
            assert first.poll() is None
        os.kill(second.pid, signal.SIGKILL)
        _, errors = first.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert first.returncode == 4
    assert "another process of this training has ended" in errors
    assert "Traceback" not in errors
    found = latest_checkpoint(out / "checkpoints")
    assert found is not None
    assert 0 < found[0].epoch < 30
    config = load_config(out / "run.toml")
    result = train(config, out, resume=True)
    assert result["processes"] == 1
    assert "trained by 2, then 1 processes" in result["notes"][0]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 31))


def test_what_is_wrong_is_said_once_and_ends_all(iris: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(iris.read_text().replace("images/", f"{iris.parent}/images/").replace("train,", "trian,"))
    pair = start_pair(*configure(manifest, "data.allow_outside=true"), "--out", tmp_path / "out")
    (_, errors), (_, others) = (process.communicate(timeout=120) for process in pair)
    assert (pair[0].returncode, pair[1].returncode) == (3, 4)
    assert "trian" in errors
    assert "trian" not in others
    assert "another process of this training has ended" in others
    assert not (tmp_path / "out").exists()


def test_each_process_takes_its_own_gpu_and_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but RANK"), processes.joined(torch.device("cpu")):
        pass
    with pytest.raises(UsageError, match="without torchrun"):
        prepare(None, Path())  # type: ignore[arg-type]
    taken = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda:1")
    assert taken == [1]
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="no GPU for process 1"):
        resolve_device("auto")
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # the device is there
    with pytest.raises(UsageError, match="'cuda:0' is one device for 2 processes"):
        resolve_device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")


def test_the_first_process_shows_and_writes_and_each_draws_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.is_first()
    monkeypatch.setenv("RANK", "1")
    assert launch.is_first()  # a number alone is not a training that is shared
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.is_first()
    assert len({epoch_seed(0, 0, 1), epoch_seed(0, 0, 1, 1), epoch_seed(0, 0, 1, 2), epoch_seed(0, 0, 2)}) == 4
    assert epoch_seed(0, 0, 1, 0) == epoch_seed(0, 0, 1)
