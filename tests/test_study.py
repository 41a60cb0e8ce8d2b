"""Studies: every training once, whatever happens to the others, to a worker, or to the whole command."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from lookhere.bench.conduct import run_study
from lookhere.bench.engine import Event, Job, execute, in_use
from lookhere.bench.finished import FinishedRun
from lookhere.bench.local import LocalEngine
from lookhere.bench.plan import read_plan
from lookhere.bench.published import welch
from lookhere.bench.status import Pace, read_status
from lookhere.bench.store import find_runs
from lookhere.bench.study import Study, prepare
from lookhere.cli import main
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.alterations import RelianceOptions

PLAN = """
title = "Tiny"
[data]
manifest = "{manifest}"
size = 48
[backbone]
name = "test_resnet"
weights = "random"
[training]
epochs = 1
batch_size = 8
device = "cpu"
threads = 1
[reliance]
bootstrap = 50
[axes]
seed = {seeds}
method = ["cross-entropy", "sage"]
"""
BROKEN = '"backbone.weights" = ["random", "missing.safetensors"]\n'


class Inline:
    """The smallest engine: one job after the other, in this process."""

    slots = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        for job in jobs:
            self.ran.append(job.name)
            yield Event(job, "started")
            yield execute(job)


def write_plan(folder: Path, manifest: Path, seeds: Sequence[int] = (0,), more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.toml"
    path.write_text(PLAN.format(manifest=manifest, seeds=list(seeds)) + more)
    return path


def states(folder: Path) -> dict[str, dict[str, int]]:
    """When each file of each finished run was written."""
    names = ("run.toml", "environment.json", "metrics.jsonl", "weights.safetensors", "predictions.csv", "result.json")
    finished = [path.parent for path in folder.glob("runs/*/result.json")]
    return {run.name: {name: (run / name).stat().st_mtime_ns for name in names} for run in finished}


@pytest.fixture(scope="module")
def done(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """A finished study of four trainings, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    numbers = 'numbers = [{ method = "sage", mean = 0.9, sd = 0.05 }]\n'
    numbers = f'[[published]]\nsource = "Somebody, 2025"\nn = 5\n{numbers}'
    study = prepare(read_plan(write_plan(folder, iris, (0, 1), numbers)), folder / "out")
    outcome = run_study(study, Inline())
    assert len(outcome.done) == 4
    return folder, study


def test_nothing_is_computed_twice(done: tuple[Path, Study], iris: Path, tmp_path: Path) -> None:
    folder, study = done
    before = states(folder / "out")
    assert len(before) == 4
    for run in study.jobs:
        assert re.fullmatch(r"(sage|cross-entropy)-test_resnet-seed[01]-[0-9a-f]{8}", run.name)
        assert json.loads((run.folder / "result.json").read_text())["identity"].startswith(run.name[-8:])
    engine = Inline()
    assert len(run_study(study, engine).before) == 4
    # Another plan in the same folder, whose data has a name, and which wants one training more.
    named = f'[sets.irises]\ndata.manifest = "{iris}"\n'
    text = PLAN.format(manifest=iris, seeds=[1, 2]).replace("[axes]", f'{named}[axes]\nset = ["irises"]')
    (tmp_path / "other.toml").write_text(text.replace('"cross-entropy", ', ""))
    other = prepare(read_plan(tmp_path / "other.toml"), folder / "out")
    outcome = run_study(other, engine)
    assert [job.label for job in outcome.before] == ["sage · irises · seed 1"]
    assert engine.ran == [other.jobs[1].name]
    assert {name: before[name] == state for name, state in states(folder / "out").items() if name in before} == (
        dict.fromkeys(before, True)
    )
    prepare(read_plan(folder / "plan.toml"), folder / "out")


def test_reliance_is_measured_after_each_training_and_once(iris: Path, tmp_path: Path, capsys) -> None:
    plan, out = write_plan(tmp_path, iris), tmp_path / "out"
    asked = ["bench", "run", str(plan), "--out", str(out), "--workers", "1"]
    study = prepare(read_plan(plan, settings=["reliance.measure=false"]), out)
    assert len(run_study(study, Inline()).done) == 2
    assert not list(out.glob("runs/*/reliance.json"))
    trained = states(out)
    # Now it is wanted: trainings are left as they are.
    study = prepare(read_plan(plan, settings=["reliance.blur=0.1"]), out)
    assert len(run_study(study, Inline()).done) == 2
    assert states(out) == trained
    for job in study.jobs:
        found = json.loads((job.folder / "reliance.json").read_text())
        assert found["options"]["blur"] == 0.1
        assert found["bootstrap"]["resamples"] == 50
        alone = FinishedRun.load(job.folder, "cpu").measure_reliance(options=RelianceOptions(blur=0.1), bootstrap=50)
        assert found == alone
    assert run_study(study, Inline()).done == []
    # A study that was killed between a training and its measurement is not done, and goes on with the latter.
    (study.jobs[0].folder / "reliance.json").unlink()
    assert (read_status(out).done, read_status(out).left) == (1, [study.jobs[0].name])
    assert main([*asked, "--set", "reliance.blur=0.1"]) == 0
    assert states(out) == trained
    assert read_status(out).done == 2
    assert main(["bench", "report", str(out), "--out", str(tmp_path / "r.md")]) == 0
    assert "background of another class" in (tmp_path / "r.md").read_text()
    capsys.readouterr()
    assert main([*asked, "--set", "reliance.blurr=0.1"]) == 2
    assert "reliance.blurr: there is no such option; did you mean 'reliance.blur'?" in capsys.readouterr().err


def test_a_set_without_maps_at_test_has_no_reliance(iris: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(iris.open()))
    bare = iris.parent / "bare.csv"
    with bare.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {**row, "saliency": "" if row["split"].startswith("test") else row["saliency"]} for row in rows
        )
    study = prepare(read_plan(write_plan(tmp_path, bare)), tmp_path / "out")
    bare.unlink()
    assert [job.reliance for job in study.jobs] == [None, None]


def test_trainings_that_repeat_others_are_told_and_made_once(iris: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, iris, (0, 1))
    plan.write_text(plan.read_text().replace('"sage"]', '"sage", { name = "sage", label = "again", tau = 2 }]'))
    study = prepare(read_plan(plan), tmp_path / "out")
    assert [job.label for job in study.jobs if "again" in job.label] == []
    assert len(study.jobs) == 4
    assert study.notes == ("2 of 6 trainings repeat others, and are not made again",)


def test_a_failed_training_leaves_the_others_alone_and_is_tried_again(iris: Path, tmp_path: Path, capsys) -> None:
    plan = write_plan(tmp_path, iris, (0,), BROKEN)
    out = tmp_path / "out"
    assert main(["bench", "run", str(plan), "--out", str(out), "--workers", "1"]) == 5
    shown = capsys.readouterr()
    assert "2 of 4 trainings done, 2 failed" in shown.out
    assert f"failed: sage · weights missing.safetensors · seed 0: backbone.weights: no file {tmp_path}" in shown.err
    assert "Traceback" not in shown.err
    kept = states(out)
    assert len(kept) == 2
    assert main(["bench", "status", str(out), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["runs"], status["done"], len(status["failed"]), status["left"]) == (4, 2, 2, [])
    assert all("backbone.weights: no file" in failed["reason"] for failed in status["failed"])
    # The file appears: only what failed is run.
    shutil.copyfile(next(out.glob("runs/cross*/weights.safetensors")), tmp_path / "donor.safetensors")
    from safetensors.torch import load_file, save_file

    network = {name.removeprefix("backbone.model."): t for name, t in load_file(tmp_path / "donor.safetensors").items()}
    save_file(network, tmp_path / "missing.safetensors")
    study = prepare(read_plan(plan), out)
    engine = Inline()
    outcome = run_study(study, engine)
    assert (len(outcome.before), len(outcome.done), outcome.failed) == (2, 2, [])
    assert len(engine.ran) == 2
    assert {name: states(out)[name] for name in kept} == kept
    assert main(["bench", "status", str(out)]) == 0
    assert "4 of 4 done, 0 running, 0 failed, 0 left" in capsys.readouterr().out


def test_what_a_training_raises_is_kept_with_its_traceback(iris: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("an error that nobody foresaw")

    study = prepare(read_plan(write_plan(tmp_path, iris)), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("lookhere.bench.run.fit", fail)
        outcome = run_study(study, Inline())
    assert [event.reason for event in outcome.failed] == ["ZeroDivisionError: an error that nobody foresaw"] * 2
    kept = json.loads((tmp_path / "out" / "failed" / f"{study.jobs[0].name}.json").read_text())
    assert "in fail" in kept["traceback"]
    assert len(run_study(study, Inline()).done) == 2
    assert not list((tmp_path / "out" / "failed").iterdir())


def test_a_worker_that_dies_fails_its_training_alone(iris: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    more = '[[adjust]]\nwhen = { method = "sage", seed = 0 }\noptions = { training.epochs = 5000 }\n'
    plan = write_plan(tmp_path, iris, (0, 1), more)
    plan.write_text(plan.read_text().replace("threads = 1\n", ""))
    study = prepare(read_plan(plan), tmp_path / "out")
    victim = next(job for job in study.jobs if job.label == "sage · seed 0")
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.01)
            if (victim.folder / "checkpoints").is_dir():
                killed.append(processes([victim])[0])
                os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    engine = LocalEngine(workers=2)
    cores = len(os.sched_getaffinity(0))
    assert (engine.slots, engine.threads) == (2, max(1, cores // 2))
    outcome = run_study(study, engine)
    thread.join()
    assert [event.job.name for event in outcome.failed] == [victim.name]
    assert "SIGKILL, most likely for want of memory" in outcome.failed[0].reason
    assert len(outcome.done) == 3
    for event in outcome.done:
        environment = json.loads((event.job.folder / "environment.json").read_text())
        assert environment["threads"] == max(1, cores // 2)
    assert LocalEngine(workers=cores + 1).threads == 1
    assert LocalEngine(workers=2).environments[0]["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert LocalEngine(workers=2).threads == 3


def processes(jobs: Sequence[Job]) -> list[int]:
    """The processes that jobs last ran in, as their logs tell."""
    return [int(re.findall(r": process (\d+) on ", job.log.read_text())[-1]) for job in jobs if job.log.is_file()]


def start(plan: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lookhere", "bench", "run", str(plan), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def exists(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)],
)
def test_a_stopped_study_leaves_no_process(number, group, code, iris: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, iris, (0,), "[methods.sage]\ntraining.epochs = 5000\n")
    plan.write_text(plan.read_text().replace('"cross-entropy", ', ""))
    process = start(plan, tmp_path / "out", "--workers", "1")
    wait_for(lambda: any(tmp_path.glob("out/runs/*/checkpoints/*-??????")))
    (log,) = tmp_path.glob("out/logs/*.log")
    (run,) = tmp_path.glob("out/runs/*")
    worker = int(re.findall(r": process (\d+) on ", log.read_text())[-1])
    assert exists(worker)
    assert in_use(run)
    status = read_status(tmp_path / "out")
    assert [one["epochs"] for one in status.running] == [5000]
    assert status.running[0]["epoch"] >= 1
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == code
    assert "Traceback" not in errors
    wait_for(lambda: not exists(worker), seconds=90)
    assert not in_use(run)
    assert read_status(tmp_path / "out").left == [run.name]


def kill_and_continue(iris: Path, folder: Path, seeds: Sequence[int], kills: Sequence[int], workers: int) -> None:
    """Kill all processes of a study whenever so many trainings are done; in the end compare with one undisturbed."""
    plan, out = write_plan(folder, iris, seeds), folder / "out"
    finished: dict[str, dict[str, int]] = {}
    for count in kills:
        process = start(plan, out, "--workers", str(workers))
        wait_for(lambda count=count: len(states(out)) >= count, seconds=600)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        now = states(out)
        assert {name: now[name] for name in finished} == finished
        finished = now
        assert len(finished) < 2 * len(seeds)
    process = start(plan, out, "--workers", str(workers))
    process.communicate()
    assert process.returncode == 0
    now = states(out)
    assert {name: now[name] for name in finished} == finished
    assert len(now) == 2 * len(seeds)
    before = torch.get_num_threads()
    undisturbed = prepare(read_plan(plan), folder / "undisturbed")
    assert len(run_study(undisturbed, Inline()).done) == 2 * len(seeds)
    torch.set_num_threads(before)
    for job in undisturbed.jobs:
        for name in ("predictions.csv", "weights.safetensors"):
            assert (out / "runs" / job.name / name).read_bytes() == (job.folder / name).read_bytes()
        assert (out / "runs" / job.name / "metrics.jsonl").read_text().count("\n") == 1


def test_a_study_killed_again_and_again_ends_as_one_undisturbed(iris: Path, tmp_path: Path) -> None:
    kill_and_continue(iris, tmp_path, seeds=(0, 1, 2), kills=(1, 3, 4), workers=1)


@pytest.mark.soak
def test_a_large_study_killed_again_and_again_ends_as_one_undisturbed(iris: Path, tmp_path: Path) -> None:
    kill_and_continue(iris, tmp_path, seeds=range(12), kills=(2, 9, 17), workers=2)


def test_shards_on_a_common_folder_do_every_training_once(iris: Path, tmp_path: Path) -> None:
    plan, out = write_plan(tmp_path, iris, (0, 1, 2)), tmp_path / "out"
    commands = [start(plan, out, "--shard", shard, "--workers", "1") for shard in ("1/2", "2/2", "1/1")]
    first: dict[str, dict[str, int]] = {}
    while any(process.poll() is None for process in commands):
        first = states(out) | first
        time.sleep(0.01)
    first = states(out) | first
    assert [process.communicate()[1].count("FAILED") for process in commands] == [0, 0, 0]
    assert [process.returncode for process in commands] == [0, 0, 0]
    assert len(first) == 6
    assert states(out) == first


def test_a_shard_does_its_own_trainings(done: tuple[Path, Study], tmp_path: Path) -> None:
    folder, study = done
    fresh = prepare(read_plan(folder / "plan.toml"), tmp_path / "one")
    assert [job.name for job in fresh.jobs] == [job.name for job in study.jobs]
    for shard in ((1, 2), (2, 2)):
        engine = Inline()
        run_study(prepare(read_plan(folder / "plan.toml"), tmp_path / str(shard[0])), engine, shard=shard)
        assert engine.ran == [job.name for job in study.jobs][shard[0] - 1 :: 2]
    shutil.copytree(tmp_path / "1", tmp_path / "both")
    shutil.copytree(tmp_path / "2", tmp_path / "both", dirs_exist_ok=True)
    assert len(find_runs([tmp_path / "both"]).runs) == 4
    assert read_status(tmp_path / "both").done == 4
    assert len(run_study(prepare(read_plan(folder / "plan.toml"), tmp_path / "both"), Inline()).before) == 4


def test_a_training_in_other_hands_is_left_to_them(done: tuple[Path, Study], tmp_path: Path) -> None:
    from filelock import FileLock

    folder, _ = done
    study = prepare(read_plan(folder / "plan.toml"), tmp_path / "out")
    study.jobs[0].folder.mkdir(parents=True)
    with FileLock(study.jobs[0].folder / ".lock"):
        outcome = run_study(study, Inline())
        assert (len(outcome.done), outcome.failed) == (3, [])
        assert outcome.elsewhere == [study.jobs[0]]
        (running,) = read_status(tmp_path / "out").running
        assert running["name"] == study.jobs[0].name
    assert len(run_study(study, Inline()).done) == 1


def test_the_report_shows_published_numbers_beside_measured(done: tuple[Path, Study], tmp_path: Path, capsys) -> None:
    folder, study = done
    assert main(["bench", "report", str(folder / "out"), "--out", str(tmp_path / "r.md")]) == 0
    row = next(line for line in (tmp_path / "r.md").read_text().splitlines() if "0.900 ± 0.050" in line)
    runs = [json.loads((j.folder / "result.json").read_text()) for j in study.jobs if j.label.startswith("sage")]
    subsets = [subset for run in runs for subset in run["evaluation"]["subsets"]]
    values = [s["metrics"]["auroc"]["value"] for s in subsets if (s["split"], s["name"]) == ("test", "all")]
    mean, sd = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert f"{mean:.3f} ± {sd:.3f}" in row
    assert f"{mean - 0.9:+.3f}".replace("-", "−") in row
    expected = stats.ttest_ind_from_stats(mean, sd, 2, 0.9, 0.05, 5, equal_var=False)
    assert f"{expected.pvalue:.2g}" in row
    assert main(["bench", "report", str(folder / "out"), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "Somebody, 2025" in page
    assert "0.900 ± 0.050" in page
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_the_reports_rows_have_the_labels_and_the_order_of_the_plan(iris: Path, tmp_path: Path) -> None:
    path = write_plan(tmp_path, iris)
    methods = (
        '[{ name = "sage", label = "SAGE, strong", alpha = 0.2 }, "cross-entropy", { name = "sage", label = "a" }]'
    )
    path.write_text(path.read_text().replace('["cross-entropy", "sage"]', f'{methods}\n"method.tau" = [3, 2]'))
    study = prepare(read_plan(path), tmp_path / "out")
    assert len(run_study(study, Inline()).done) == 5
    assert main(["bench", "report", str(tmp_path / "out"), "--out", str(tmp_path / "r.md")]) == 0
    table = (tmp_path / "r.md").read_text().partition("**Operating")[0].splitlines()
    rows = [line.partition("<br>")[0].removeprefix("| ") for line in table if "<sub>seed" in line]
    wanted = ["cross-entropy", "SAGE, strong · tau 3", "SAGE, strong · tau 2", "a · tau 3", "a · tau 2"]
    assert rows[:5] == wanted
    assert main(["bench", "report", str(tmp_path / "out"), "--out", str(tmp_path / "r.html")]) == 0
    assert "<h1>Tiny</h1>" in (tmp_path / "r.html").read_text()


def test_welch_is_scipys() -> None:
    a, b = [0.91, 0.94, 0.9, 0.95, 0.93], [0.88, 0.84, 0.9]

    def described(values: list[float]) -> tuple[float, float, int]:
        result = stats.describe(values)
        return float(result.mean), float(result.variance) ** 0.5, len(values)

    found = welch(described(a), described(b))
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert welch((0.9, 0.0, 1), (0.8, 0.1, 5)) is None
    assert welch((0.9, 0.0, 5), (0.8, 0.0, 5)) is None


def test_time_left_is_that_of_the_same_kind_or_of_all() -> None:
    pace = Pace()
    assert pace.left(["a"]) is None
    for kind, seconds in (("a", 10.0), ("a", 20.0), ("b", 60.0)):
        pace.add(kind, seconds)
    assert pace.left(["a", "a", "b", "new"]) == 15 + 15 + 60 + 30
    assert pace.left([]) == 0


def test_wrong_data_and_places_are_told_before_anything_runs(iris: Path, tmp_path: Path, capsys) -> None:
    manifest = tmp_path / "broken.csv"
    manifest.write_text(iris.read_text().replace(".png", ".pgn", 1))
    with pytest.raises(DataError, match=r"pgn"):
        prepare(read_plan(write_plan(tmp_path, manifest)), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        prepare(read_plan(write_plan(tmp_path, iris)), tmp_path / "file")
    with pytest.raises(UsageError, match="no device 'cuda:77'"):
        prepare(read_plan(write_plan(tmp_path, iris), settings=["training.device=cuda:77"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan = ["bench", "run", str(write_plan(tmp_path, iris))]
    for arguments, expected in (
        (["--out", str(tmp_path / "out"), "--shard", "3/2"], "--shard 3/2: expected I/N"),
        (["--out", str(tmp_path / "out"), "--workers", "0"], "--workers"),
        (["--out", str(tmp_path)], f"{tmp_path}: holds other files"),
        ([], "--out: is required"),
    ):
        assert main([*plan, *arguments]) == 2
        assert expected in capsys.readouterr().err
    assert main(["bench", "status", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
