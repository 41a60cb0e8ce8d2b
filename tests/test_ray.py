"""Studies on a Ray cluster: several nodes on this machine, one of which is killed in the middle of a plan."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Read when ray is imported: nodes meet on the loopback interface, and tell nobody of it.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from lookhere.bench import cluster
from lookhere.bench.cluster import RayEngine, connected
from lookhere.bench.conduct import Outcome, run_study
from lookhere.bench.engine import Event, Job, in_use
from lookhere.bench.local import LocalEngine
from lookhere.bench.plan import read_plan
from lookhere.bench.study import Study, prepare
from lookhere.cli import main
from lookhere.errors import UsageError

PLAN = """
title = "Tiny"
[data]
manifest = "{manifest}"
size = 32
[backbone]
name = "test_resnet"
weights = "random"
[training]
epochs = {epochs}
batch_size = 8
device = "cpu"
[axes]
method = {methods}
seed = {seeds}
"""
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def nodes(_own_cache: None) -> Iterator[Cluster]:
    """A cluster of a head that trains nothing and two nodes with room for a training each."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: names of sockets are limited
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("OMP_NUM_THREADS", "2")
        handler = signal.getsignal(signal.SIGTERM)
        found = Cluster()
        try:
            try:
                found.add_node(**NODE | {"num_cpus": 0}, include_dashboard=False)
            except Exception as error:
                pytest.skip(f"Ray itself cannot start a node on this machine: {error}")
            for _ in range(2):
                found.add_node(**NODE)
            signal.signal(signal.SIGTERM, handler)  # each node takes it for itself
            yield found
        finally:
            found.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def connection(nodes: Cluster) -> Iterator[None]:
    with connected(nodes.address):
        yield


def make_study(
    folder: Path, manifest: Path, epochs: int = 1, seeds: Sequence[int] = (0,), methods: Sequence[str] = ("sage",)
) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    text = PLAN.format(manifest=manifest, epochs=epochs, seeds=list(seeds), methods=json.dumps(methods))
    (folder / "plan.toml").write_text(text)
    return prepare(read_plan(folder / "plan.toml"), folder / "out")


def processes(job: Job) -> list[int]:
    """The processes that a job was carried out in, as its log tells."""
    return [int(found) for found in re.findall(r": process (\d+) on ", job.log.read_text())] if job.log.exists() else []


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def exists(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def begun(job: Job) -> bool:
    """Has a job finished an epoch, and not all?"""
    return any(job.folder.glob("checkpoints/*-??????"))


def written(job: Job) -> int:
    """When a job's result was written, or 0."""
    result = job.folder / "result.json"
    return result.stat().st_mtime_ns if result.exists() else 0


def metrics(job: Job) -> list[str]:
    return (job.folder / "metrics.jsonl").read_text().splitlines()


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def test_a_lost_node_loses_nothing_and_the_numbers_are_those_of_one_machine(
    iris: Path, nodes: Cluster, connection: None, tmp_path: Path
) -> None:
    plan = {"epochs": 5, "seeds": (0, 1), "methods": ("cross-entropy", "sage")}
    study = make_study(tmp_path / "ray", iris, **plan)
    engine = RayEngine(devices={"cpu"})
    assert (engine.slots, engine.threads) == (2, 2)
    victim = study.jobs[2]
    events: list[tuple[str, str]] = []
    finished: dict[str, int] = {}
    lines: list[str] = []

    def lose_a_node(event: Event, outcome: Outcome) -> None:
        """Kill a node while a training is at work on it, whose lock stays for seconds, as on a file server."""
        events.append((event.job.name, event.state))
        if events[-1] != (victim.name, "started"):
            return
        wait_for(lambda: begun(victim))
        (process,) = processes(victim)
        os.kill(process, signal.SIGSTOP)  # so that it does not end while its node does
        assert in_use(victim.folder)
        finished.update({job.name: written(job) for job in study.jobs if written(job)})
        lines.extend(metrics(victim))
        (node,) = (node for node in nodes.worker_nodes if raylet(node) == parent(process))
        nodes.remove_node(node, allow_graceful=False)
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: not exists(process))
        lock = FileLock(victim.folder / ".lock", thread_local=False)
        lock.acquire(timeout=30)  # a killed process lets go when its last thread has ended
        handler = signal.getsignal(signal.SIGTERM)
        nodes.add_node(**NODE)
        signal.signal(signal.SIGTERM, handler)
        assert engine.slots in (2, 3)  # until the cluster knows that the other is gone
        threading.Timer(6, lock.release).start()

    outcome = run_study(study, engine, report=lose_a_node)
    assert Counter(events) == Counter((job.name, state) for job in study.jobs for state in ("started", "done"))
    assert len(outcome.done) == len(study.jobs)
    # The one that was lost went on from its last epoch; no other was touched, or begun again.
    assert finished
    assert {job.name: written(job) for job in study.jobs if job.name in finished} == finished
    assert [len(set(processes(job))) for job in study.jobs] == [2 if job == victim else 1 for job in study.jobs]
    assert 1 <= len(lines) < plan["epochs"]
    assert metrics(victim)[: len(lines)] == lines

    alone = make_study(tmp_path / "local", iris, **plan)
    assert len(run_study(alone, LocalEngine(workers=1)).done) == len(study.jobs)
    for job, other in zip(study.jobs, alone.jobs, strict=True):
        for name in ("predictions.csv", "weights.safetensors"):
            assert (job.folder / name).read_bytes() == (other.folder / name).read_bytes()
        assert [json.loads(line)["epoch"] for line in metrics(job)] == list(range(1, plan["epochs"] + 1))
        environments = [json.loads((one.folder / "environment.json").read_text()) for one in (job, other)]
        assert [(one["threads"], one["command"]) for one in environments] == [(2, environments[0]["command"])] * 2


def test_a_worker_that_dies_too_often_fails_its_training_alone(
    iris: Path, connection: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RETRIES", 0)
    study = make_study(tmp_path, iris, methods=("sage", "cross-entropy"))
    ended: list[str] = []

    def kill(event: Event, outcome: Outcome) -> None:
        if event.job == study.jobs[0] and event.state == "started":
            wait_for(lambda: processes(event.job))
            os.kill(processes(event.job)[0], signal.SIGKILL)
        ended.append(event.state)

    outcome = run_study(study, RayEngine(workers=1, devices={"cpu"}), report=kill)
    assert ended == ["started", "failed", "started", "done"]
    (failed,) = outcome.failed
    assert failed.job == study.jobs[0]
    assert failed.reason.startswith("its worker was lost 1 times, the last time: ")
    assert len(failed.reason) > 50


def test_a_stopped_study_leaves_no_worker(iris: Path, nodes: Cluster, tmp_path: Path) -> None:
    study = make_study(tmp_path, iris, epochs=5000)
    (job,) = study.jobs
    arguments = ["--out", str(tmp_path / "out"), "--engine", "ray", "--address", nodes.address]
    command = [sys.executable, "-m", "lookhere", "bench", "run", str(tmp_path / "plan.toml"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: begun(job))
    (worker,) = processes(job)
    assert exists(worker)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 143, errors
    assert "1 trainings; 2 at a time, 2 threads each" in errors
    assert "Traceback" not in errors
    assert not in_use(job.folder)
    wait_for(lambda: not exists(worker))


def test_nodes_that_cannot_be_used_are_told(
    iris: Path, connection: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path, iris, seeds=(0, 1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "__version__", "0.0.1")
        with pytest.raises(UsageError, match=r"no node .* can be used: .* has lookhere .* study is run by 0\.0\.1"):
            run_study(study, RayEngine(devices={"cpu"}))
    assert capsys.readouterr().err.count("not used: ") == 2
    elsewhere = [dataclasses.replace(job, folder=tmp_path / "a" / "b" / job.name) for job in study.jobs]
    with pytest.raises(UsageError, match=rf"does not see {tmp_path / 'a'}; expected a folder that all nodes share"):
        next(RayEngine(devices={"cpu"}).run(elsewhere))
    with pytest.raises(UsageError, match="no node of the Ray cluster has the 3 CPUs of a training"):
        RayEngine(devices={"cpu"}, threads=3)
    with pytest.raises(UsageError, match=r"training\.device: 'cuda:1'"):
        RayEngine(devices={"cuda:1"})
    assert RayEngine(threads=1).slots == 4
    assert RayEngine(threads=1, workers=3).slots == 3


def test_what_is_wrong_with_the_cluster_is_told_at_once(
    iris: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path, iris)
    run = ["bench", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
        for arguments, expected in (
            (["--address", nobody], "--address: names a Ray cluster, so it needs --engine ray"),
            (["--engine", "ray", "--address", nobody], f"--address {nobody}: no Ray cluster to connect to"),
            (["--engine", "ray", "--address", "somewhere"], "--address somewhere: no Ray cluster to connect to"),
            (["--engine", "ray", "--address", f"ray://{nobody}"], "expected HOST:PORT, on a node of the cluster"),
        ):
            assert main([*run, *arguments]) == 2
            shown = capsys.readouterr().err
            assert expected in shown
            assert ("start a cluster with: ray start --head" in shown) == ("--engine" in arguments)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*run, "--engine", "ray"]) == 2
    assert "run: pip install 'lookhere[ray]'" in capsys.readouterr().err
