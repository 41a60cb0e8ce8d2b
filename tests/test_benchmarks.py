"""The benchmarks: what they compute from times, what they keep, and the smallest call of each. No time is judged."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from lookhere.bench.engine import execute
from lookhere.bench.plan import read_plan
from lookhere.bench.status import read_status
from lookhere.bench.store import find_runs
from lookhere.bench.study import prepare
from lookhere.data.iris import make_iris
from lookhere.training.config import configure

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = {"cpu": "AMD EPYC", "flags": ["avx2", "avx512f", "avx512_bf16"], "cores": 2, "memory_gb": 24, "gpu": None}
GPU = {**CPU, "gpu": "NVIDIA H200", "gpu_memory_gb": 140}
pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the folder benchmarks, as its scripts import each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = (
        "allocator",
        "child",
        "machine",
        "generated",
        "step_cost",
        "epoch",
        "growth",
        "floor",
        "targets",
        "study_throughput",
    )
    return SimpleNamespace(**{name: import_module(name) for name in names})


def positive(values: Any) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


# what is kept


def test_a_file_is_named_by_the_device_that_was_measured(bench: SimpleNamespace) -> None:
    assert bench.machine.file_name(CPU) == "amd-epyc-2-cores-avx512f.json"
    assert bench.machine.file_name(GPU) == "nvidia-h200-140.json"
    assert bench.machine.file_name({**CPU, "flags": [], "cpu": "Apple M2"}) == "apple-m2-2-cores.json"


def test_sections_are_merged_and_name_no_host_and_no_folder(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks/step_cost.py"), "--save"])
    path = bench.machine.save("one", {"value": 1}, "cpu", tmp_path / "results")
    bench.machine.save("two", {"value": 2}, "cpu", tmp_path / "results")
    bench.machine.save("one", {"value": 3}, "cpu", tmp_path / "results")
    found = bench.machine.load(path)
    assert {name: section["value"] for name, section in found["sections"].items()} == {"one": 3, "two": 2}
    assert found["sections"]["two"]["command"] == "benchmarks/step_cost.py --save"
    assert found["machine"] == bench.machine.describe("cpu")
    text = path.read_text()
    assert str(tmp_path) not in text
    assert str(BENCHMARKS.parent) not in text
    assert socket.gethostname() not in text
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_measurements_that_end_together_are_all_kept_and_a_bad_one_changes_nothing(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        [path] = set(pool.map(lambda i: bench.machine.save(str(i), {"value": i}, "cpu", tmp_path), range(8)))
    assert {name: one["value"] for name, one in bench.machine.load(path)["sections"].items()} == {
        str(i): i for i in range(8)
    }
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        bench.machine.save("nan", {"value": math.nan}, "cpu", tmp_path)
    assert path.read_bytes() == before
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path.name}: damaged"):
        bench.machine.load(path)


# the table of targets


def step(backbone: str, **ratios: float) -> dict[str, Any]:
    made = {"date": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.15"}}
    return {**made, "backbone": backbone, "ratios": ratios}


def test_targets_are_met_missed_not_measured_or_not_for_a_machine(bench: SimpleNamespace) -> None:
    name = bench.step_cost.section
    rows = [{"method": "sage", "size": 96, "images": 2000, "ratio": r} for r in (1.01, 1.03)]
    memory = [
        {"backbone": "resnet50", "view_memory": kept, "batch_norm": mode, "over_cross_entropy": value}
        for kept, mode, value in (("high", "joint", 3.9), ("low", "per_view", 1.1), ("low", "joint", 1.61))
    ]
    made = step("")
    sections = {
        name("resnet50", 224, 20, "float32"): step("resnet50", sage_to_cross_entropy=4.05, sage_to_literal=0.9),
        name("densenet121", 224, 20, "float32"): step("densenet121", sage_to_cross_entropy=4.06),
        name("resnet50", 224, 20, "bfloat16"): step("resnet50", sage_to_cross_entropy=4.0, sage_to_literal=0.35),
        "epoch": {**made, "rows": rows},
        "memory": {**made, "rows": memory},
        "study": {**made, "ratios": {"bench run --workers 1": 1.4, "bench run --workers 2": 1.6}},
    }
    table = bench.targets.table({"machine": CPU, "sections": sections})
    assert [row[-1] for row in table] == [
        *("met", "not met", "needs a GPU", "met", "not measured", "met", "not met", "met"),
    ]
    assert table[0][2:4] == ("≤ 4.05", "4.050 (resnet50)")
    assert table[7][2:4] == ("≥ 1.5", "1.600 (bench run --workers 2)")
    on_gpu = bench.targets.table({"machine": GPU, "sections": sections})
    assert [on_gpu[i][-1] for i in (2, 3, 7)] == ["not met", "for a CPU", "not met"]
    old = bench.targets.table({"machine": {**CPU, "flags": ["avx2"]}, "sections": sections})
    assert old[3][-1] == "needs bfloat16 units"
    shown = bench.targets.text({"machine": CPU, "sections": sections}, markdown=True).splitlines()
    assert shown[0] == "AMD EPYC, 2 cores, avx2 avx512f avx512_bf16; 24 GB; torch 2.15; 2026-01-02 to 2026-01-02"
    assert {line.count("|") for line in shown[2:]} == {6}
    assert len(shown) == 4 + len(table)


def test_every_section_of_steps_that_a_target_reads_is_measured_by_make_bench(bench: SimpleNamespace) -> None:
    text = (BENCHMARKS.parent / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    measured = set()
    for line in (line for line in text.splitlines() if "step_cost.py" in line and "--cheaper" not in line):
        words = line.split()
        backbones = words[words.index("--backbones") + 1].split(",")
        precision = words[words.index("--precision") + 1] if "--precision" in words else "float32"
        measured |= {bench.step_cost.section(backbone, 224, 20, precision) for backbone in backbones}
    assert {target.section for target in bench.targets.TARGETS if target.section.startswith("step")} <= measured


# computing with times


def test_the_exponent_of_growth_is_that_of_the_larger_half(bench: SimpleNamespace) -> None:
    sizes = [1, 10, 100, 1000]
    assert bench.growth.exponent(sizes, [7, 7, 2e4, 2e6]) == pytest.approx(2)
    assert bench.growth.exponent(sizes[:2], [3, 30]) == pytest.approx(1)
    assert math.isnan(bench.growth.exponent([5], [1.0]))


def test_ratios_are_medians_of_pairs(bench: SimpleNamespace) -> None:
    times = {"a": [4.0, 9.0, 100.0], "b": [1.0, 3.0, 10.0]}
    assert bench.step_cost.paired(times, "a", "b") == 4.0


def test_repeats_end_with_the_time_but_not_before_three(bench: SimpleNamespace) -> None:
    steps = {"wait": [(lambda: time.sleep(0.01), 1.0)]}
    device = torch.device("cpu")
    assert [
        len(bench.step_cost.measure(steps, n, device, budget)["wait"]) for n, budget in ((5, 1e9), (5, 0), (1, 0))
    ] == [
        *(5, 3, 1),
    ]


def test_bare_steps_are_taken_out_of_an_epoch(bench: SimpleNamespace) -> None:
    clock = bench.epoch.Clock(lambda: None, torch.device("cpu"), every=10)
    for _ in range(25):
        clock()
    assert (clock.taken, len(clock.bare)) == (25, 3)
    clock.bare = [1.0, 2.0, 6.0]
    clock.end_epoch(spent=64.0)  # 25 steps of 2 s, 9 s of bare steps, and 5 s of waiting
    assert clock.epochs == [{"seconds": 55.0, "steps": 25, "step": 2.0, "ratio": 1.1}]
    assert (clock.taken, clock.bare) == (0, [])


def test_the_floor_is_the_longer_of_arithmetic_and_bytes(bench: SimpleNamespace) -> None:
    work = {"gflop": 10.0, "kept_mb": 50.0, "weights_mb": 25.0}
    best = {"float32_gflops": 100.0, "bfloat16_gflops": 1000.0, "copy_gbps": 1.0}
    assert bench.floor.floor(work, 4, best, "float32") == pytest.approx(
        {"arithmetic": 0.4, "bytes": (4 * 2 * 50 + 8 * 25) / 1000, "floor": 0.6}
    )


def test_the_arithmetic_of_a_known_network(bench: SimpleNamespace) -> None:
    # ResNet18 has 1.8136 G multiplications in convolutions at 224 px, 1/12.25 of them at 64; three times as many with
    # the backward pass, less the gradient of the image that the first convolution need not give.
    first = 64 * 3 * 49 * 32 * 32
    expected = 2 * (3 * 1.8136e9 * (64 / 224) ** 2 - first) / 1e9
    work = bench.floor.least_work("resnet18", 64, "float32")
    assert work["gflop"] == pytest.approx(expected, rel=5e-3)
    assert work["weights_mb"] == pytest.approx(4 * 11.178, rel=1e-3)
    # With depthwise convolutions: each weight multiplies once for each place of its channel's output.
    network = timm.create_model("tf_efficientnet_lite0", num_classes=2).eval()
    counted: list[int] = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, _, out: counted.append(layer.weight.numel() * out.shape[2] * out.shape[3])
            )
    network(torch.zeros(1, 3, 64, 64))
    work = bench.floor.least_work("tf_efficientnet_lite0", 64, "float32")
    assert work["gflop"] == pytest.approx(2 * (3 * (sum(counted) + 2 * 1280) - counted[0]) / 1e9, rel=1e-6)
    # What is kept is as large as the maps of the layers: four times as much for twice the side, half in half precision.
    side, twice, half = (
        bench.floor.least_work("test_resnet", size, precision)["kept_mb"]
        for size, precision in ((64, "float32"), (128, "float32"), (128, "bfloat16"))
    )
    assert twice == pytest.approx(4 * side, rel=0.01)
    assert half < 0.75 * twice


# processes


def test_a_process_is_measured_ended_and_explained(bench: SimpleNamespace) -> None:
    used = bench.child.run(sys.executable, "-c", "x = bytearray(80_000_000); print('here')")
    assert used.output == "here\n"
    assert used.peak_mb > 80
    assert positive(used[:3])
    with pytest.raises(RuntimeError, match="ended with 3:\nwhy"):
        bench.child.run(sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)")
    with pytest.raises(bench.child.TooLong, match=r"more than 0\.5 s"):
        bench.child.run(sys.executable, "-c", "import time; time.sleep(60)", limit=0.5)


def test_sigterm_ends_what_a_benchmark_has_started(tmp_path: Path) -> None:
    begun = tmp_path / "pid"
    sleeper = f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    parent = f"import child, sys; child.end_on_sigterm(); child.run(sys.executable, '-c', {sleeper!r})"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=BENCHMARKS)
    deadline = time.monotonic() + 60
    while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


# the smallest call of each


def test_steps_and_their_profile(bench: SimpleNamespace) -> None:
    torch.manual_seed(0)
    batch = bench.step_cost.make_batch(32, 4, torch.device("cpu"))
    for precision in ("float32", "bfloat16"):
        times, ratios = bench.step_cost.compare("test_resnet", batch, 1, precision)
        assert positive(value for values in times.values() for value in values)
        assert positive(ratios.values())
    shares = bench.floor.shares("test_resnet", batch, "float32")
    assert sum(shares.values()) == pytest.approx(1)
    assert positive(shares[name] for name in ("convolution", "normalisation", "views", "losses", "optimiser"))
    assert positive(bench.floor.peak(torch.device("cpu"), seconds=0, side=64).values())


def test_cheaper_forms_of_sage_are_cheaper_in_passes(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    batch = bench.step_cost.make_batch(32, 4, torch.device("cpu"))
    create = bench.step_cost.create_backbone

    def counted(*arguments: Any) -> Any:
        backbone = create(*arguments)
        backbone.register_forward_pre_hook(lambda _, given: passed.append(given[0].numel()))
        return backbone

    monkeypatch.setattr(bench.step_cost, "create_backbone", counted)
    found = {}
    for title, options in {"sage": {}, **bench.step_cost.CHEAPER}.items():
        passed.clear()
        steps = bench.step_cost.our_steps("sage", "test_resnet", batch, **options)
        assert sum(share for _, share in steps) == pytest.approx(1)
        for step, _ in steps:
            step()
        found[title] = sum(passed) / len(steps) / batch.image.numel()
    assert found == {
        "sage": 4,
        "guided_share 0.5": 2.5,
        "guided_every 2": 2.5,
        "views.scale 0.5": 2,
        "both halves": 1.5,
    }
    ratios = bench.step_cost.compare_cheaper("test_resnet", batch, 1)
    assert set(ratios) == set(found)


def test_memory_that_is_kept_is_compared_with_the_default(bench: SimpleNamespace) -> None:
    row = bench.allocator.measure("test_resnet", 32, 2, repeats=1, pairs=1)
    assert positive([row[name]["ratio"] for name in bench.allocator.METHODS])
    assert set(row["peak_mb"]) == {"default", "kept"}


def test_half_precision_changes_a_step(bench: SimpleNamespace) -> None:
    def weights(precision: str) -> torch.Tensor:
        torch.manual_seed(0)
        batch = bench.step_cost.make_batch(32, 4, torch.device("cpu"))
        [(step, _)] = bench.step_cost.our_steps("sage", "test_resnet", batch, precision)
        step()
        method = step.__closure__[[*step.__code__.co_freevars].index("method")].cell_contents
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    full, half = weights("float32"), weights("bfloat16")
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.01)


def test_an_epoch(bench: SimpleNamespace, tmp_path: Path) -> None:
    content = {
        "data": {"manifest": bench.generated.write_set(tmp_path, 10, side=32), "size": 32, "cache": tmp_path / "cache"},
        "backbone": {"name": "test_resnet", "weights": "random"},
        "training": {"epochs": 2, "batch_size": 4, "select": "last", "device": "cpu"},
    }
    epochs = bench.epoch.measure(configure(content), tmp_path / "run", every=2)
    assert [epoch["steps"] for epoch in epochs] == [3, 3]
    assert positive(value for epoch in epochs for value in epoch.values())


def test_images(bench: SimpleNamespace, tmp_path: Path) -> None:
    bench.generated.write_set(tmp_path, 50, files=7, side=32, mode="L")
    rows = [{"images": 50, "build": bench.growth.gather(tmp_path, 16)["open"], **bench.growth.gather(tmp_path, 16)}]
    rows[0] |= {"peak_mb": 1.0, "build_peak_mb": 1.0}
    assert positive(value for value in rows[0].values() if value is not None)
    bench.growth.print_images([*rows, {**rows[0], "images": 100}])


def test_growth_of_steps(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    a = Namespace(device="cpu", precision="float32", repeats=1, seconds=0)
    some = [bench.growth._steps("test_resnet", 32, count, a) for count in (2, 4)]
    rows = [{"axis": axis, **row} for axis in ("batch", "size", "backbone") for row in some]
    rows[3] |= {"size": 64}
    found = bench.growth.print_step(rows)
    assert set(found) == {f"{name} over {of}" for name in ("cross-entropy", "sage") for of in ("images", "pixels")}
    assert all(map(math.isfinite, found.values()))
    assert "SAGE s" in capsys.readouterr().out


def test_a_study_of_copies_is_one_that_is_finished(bench: SimpleNamespace, tmp_path: Path) -> None:
    make_iris(tmp_path / "set", size=96, train=8, val=4, test=12)
    (tmp_path / "plan.toml").write_text(bench.growth.PLAN)
    real = prepare(read_plan(tmp_path / "plan.toml"), tmp_path / "real")
    assert [execute(job).state for job in real.jobs] == ["done", "done"]
    bench.growth.make_study(tmp_path / "many", tmp_path / "real", 21)
    status = read_status(tmp_path / "many")
    assert (status.runs, status.done) == (21, 21)
    runs = find_runs([tmp_path / "many" / "runs"]).runs
    assert sorted(Counter(run.result["group"] for run in runs).values()) == [1, 10, 10]
    assert len({json.dumps(run.config["method"]) for run in runs}) == 3
    assert len({json.dumps(run.result["evaluation"]) for run in runs}) == 21
    assert len({run.scores().logits.tobytes() for run in runs}) == 21


def test_the_plan_of_a_study_is_one(bench: SimpleNamespace, tmp_path: Path) -> None:
    plan = bench.study_throughput.PLAN.format(size=48, backbone="test_resnet", epochs=1, device="cpu", seeds=[0, 1])
    (tmp_path / "plan.toml").write_text(plan)
    assert [entry.assignment for entry in read_plan(tmp_path / "plan.toml").entries] == [
        {"seed": seed, "method": method} for seed in (0, 1) for method in ("cross-entropy", "sage")
    ]
