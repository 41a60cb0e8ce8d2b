"""How far a training step is from what the device could do at best, and where the rest goes.

    python benchmarks/floor.py

The device's peak is measured: multiplications of large matrices in float32 and bfloat16, and copies of a large tensor.
The floor of a step is the longer of two times: its arithmetic at that peak (PyTorch's flop counter, forward and
backward), and the bytes that it cannot help moving at that bandwidth. These are each tensor that the backward pass
needs, written and read once, and the weights: read in both passes, their gradients written, and the optimiser's five
reads and writes. The fraction is the floor over the measured step of cross-entropy; SAGE's four views have four times
the arithmetic. On a GPU, float32 is measured with TF32, as PyTorch's convolutions use it by default.

A profile of a SAGE step says which operations take the time: of the processor, or of the GPU where that is used. What
an operation leaves to others counts as theirs. Takes about six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import machine
import torch
from step_cost import make_batch, measure, our_steps
from step_cost import seconds as timed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from lookhere.batch import Batch
from lookhere.methods import METHODS, create_method, sage
from lookhere.progress import Track
from lookhere.training.devices import resolve_device
from lookhere.weights import BackboneOptions, create_backbone

NETWORKS = ["resnet18", "resnet50", "densenet121", "tf_efficientnet_lite0", "tf_efficientnet_b7"]
SWIN = "swin_tiny_patch4_window7_224"
GROUPS = {
    "convolution": ("conv",),
    "matrix product": ("addmm", "::mm", "bmm", "matmul", "linear", "attention"),
    "normalisation": ("batch_norm", "layer_norm"),
    "pooling": ("pool", "::mean"),
    "activation": ("relu", "threshold", "silu", "gelu", "sigmoid", "hardtanh", "softmax", "clamp"),
    "copies": ("copy_", "::cat", "clone", "contiguous", "::fill_", "::zero_", "memcpy", "memset"),
    "sums and products": ("::add", "::mul", "::sum", "::div", "::sub"),
}
"""Which operations a group of the profile holds, by parts of their names; the first that fits has it."""
RANGES = {"saliency_views": "views", "saliency_logit_alignment": "losses", "saliency_contrastive_embedding": "losses"}


# the device


def peak(device: torch.device, seconds: float = 2.0, side: int | None = None) -> dict[str, float]:
    """Return GFLOP/s of matrix products in float32 and bfloat16, and the GB/s of a copy (read and written)."""
    side = side or (8192 if device.type == "cuda" else 2048)
    found = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    for name, dtype in (("float32_gflops", torch.float32), ("bfloat16_gflops", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        found[name] = 2 * side**3 / 1e9 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)  # type: ignore[misc]
    torch.set_float32_matmul_precision(precision)
    source = torch.ones((2**31 if device.type == "cuda" else 2**28) // 4, device=device)
    target = torch.empty_like(source)
    found["copy_gbps"] = 2 * source.nbytes / 1e9 / _best(lambda: target.copy_(source), device, seconds)
    return found


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the fewest seconds that some work takes, of as many times as fit in ``seconds``, but three at least."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    work()
    while len(times) < 3 or time.perf_counter() < until:
        times.append(timed(work, device))
    return min(times)


# a step's least work


def least_work(network: str, size: int, precision: str) -> dict[str, float]:
    """Return, for a step of cross-entropy on one image: GFLOP, and MB of kept tensors; and MB of weights.

    They are counted on the processor, as the difference between batches of three and two, so that what does not grow
    with a batch is left out.
    """
    two, three = (_work(network, size, count, precision) for count in (2, 3))
    return {
        "gflop": (three["flop"] - two["flop"]) / 1e9,
        "kept_mb": (three["kept"] - two["kept"]) / 1e6,
        "weights_mb": three["weights"] / 1e6,
    }


def _work(network: str, size: int, count: int, precision: str) -> dict[str, float]:
    method = create_method(METHODS["cross-entropy"].Options(name="cross-entropy"), _backbone(network, size))
    method = method.to(memory_format=torch.channels_last)
    batch = make_batch(size, count, torch.device("cpu"))
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            loss = method(batch)["total"]
        loss.backward()
    of_weights = sum(p.nbytes for p in method.parameters())
    return {"flop": counter.get_total_flops(), "kept": sum(kept.values()), "weights": of_weights}


def _flops_of_gradients(
    gradient: Sequence[int], image: Sequence[int], weight: Sequence[int], *rest: Any, **named: Any
) -> int:
    """Return the arithmetic of a convolution's backward pass: for each gradient that is wanted, as much as forwards.

    PyTorch's counter takes the gradient of the weights of a grouped convolution for that of a dense one.
    """
    *_, transposed, _, _, wanted = rest
    return conv_flop_count(list(image), list(weight), list(gradient), transposed) * sum(wanted[:2])


OPERATIONS = {torch.ops.aten.convolution_backward: _flops_of_gradients}
"""Formulas in the place of the counter's own."""


def _backbone(network: str, size: int) -> Any:
    return create_backbone(BackboneOptions(name=network, weights="random"), 2, size)


def floor(work: dict[str, float], count: int, at_best: dict[str, float], precision: str) -> dict[str, float]:
    """Return the seconds that a batch's arithmetic and bytes take at the device's best, and the longer of the two."""
    arithmetic = count * work["gflop"] / at_best[f"{precision}_gflops"]
    moved = (count * 2 * work["kept_mb"] + 8 * work["weights_mb"]) / 1e3 / at_best["copy_gbps"]
    return {"arithmetic": arithmetic, "bytes": moved, "floor": max(arithmetic, moved)}


# where the time goes


def shares(network: str, batch: Batch, precision: str) -> dict[str, float]:
    """Return the share of each group of operations in a SAGE step, the largest first."""
    device = batch.image.device
    [(step, _)] = our_steps("sage", network, batch, precision)
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with _ranges(), warnings.catch_warnings(), profile(activities=activities) as profiler:
        warnings.simplefilter("ignore")
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    spent: Counter[str] = Counter()
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CPU:  # kernels count with the operation that starts them
            time_of = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            spent[_group(event)] += time_of
    total = sum(spent.values())
    return {name: value / total for name, value in spent.most_common()}


@contextmanager
def _ranges() -> Iterator[None]:
    """Name the parts of SAGE in a profile."""

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with record_function(name):
                return function(*args, **options)

        return call

    with ExitStack() as stack:
        for function, name in RANGES.items():
            stack.enter_context(patch.object(sage, function, named(name, getattr(sage, function))))
        yield


def _group(event: Any) -> str:
    """Return the group of an operation: the part of the step that it belongs to, or else its kind."""
    above = event
    while above is not None:
        if above.name in RANGES.values():
            return str(above.name)
        if above.name.startswith("Optimizer"):
            return "optimiser"
        above = above.cpu_parent
    name = event.name.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=",".join([*NETWORKS, SWIN]), help="names with commas between them")
    parser.add_argument("--sizes", default="96,224", help="of the images; Swin takes 224 alone")
    parser.add_argument("--batch", type=int, help="by default 20, 8 on a CPU")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=15, help="for the repeats of a step, but three at least")
    parser.add_argument(
        "--profile", default="resnet50,tf_efficientnet_b7", help="backbones whose SAGE step is profiled"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    machine.add_save(parser)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = resolve_device(a.device)
    count = a.batch or (8 if device.type == "cpu" else 20)
    sizes = [int(size) for size in a.sizes.split(",")]
    at_best = peak(device)
    print(", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in at_best.items()))
    points = [(name, size) for name in a.backbones.split(",") for size in sizes if size == 224 or "224" not in name]
    rows = []
    print(f"\n{'':36} {'arithmetic s':>13} {'bytes s':>9} {'step s':>9} {'floor ÷ step':>13}")
    with Track("measuring", len(points)) as track:
        for name, size in points:
            work = least_work(name, size, a.precision)
            least = floor(work, count, at_best, a.precision)
            steps = {"step": our_steps("cross-entropy", name, make_batch(size, count, device), a.precision)}
            step = statistics.median(measure(steps, a.repeats, device, a.seconds)["step"])
            rows.append(
                {"backbone": name, "size": size, **work, **least, "step": step, "fraction": least["floor"] / step}
            )
            print(
                f"{f'{name}, {size} px':36} {least['arithmetic']:13.4f} {least['bytes']:9.4f} {step:9.4f} "
                f"{least['floor'] / step:13.2f}",
                flush=True,
            )
            del steps
            gc.collect()
            track.advance(note=f"{name}, {size} px")
    profiles = {}
    for name in filter(None, a.profile.split(",")):
        size = max(sizes)
        profiles[f"{name}, {size} px"] = found = shares(name, make_batch(size, max(2, count // 4), device), a.precision)
        print(
            f"\n{name}, {size} px, a SAGE step: " + ", ".join(f"{group} {share:.1%}" for group, share in found.items())
        )
    if a.save:
        about = {"batch": count, "precision": a.precision, "peak": at_best}
        machine.save(f"floor, {a.precision}", {**about, "rows": rows, "profiles": profiles}, a.device)


if __name__ == "__main__":
    main()
