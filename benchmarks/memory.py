"""The most memory that a training step holds, SAGE against cross-entropy, with training.view_memory high and low.

    python benchmarks/memory.py                                   # resnet50, 224 px, batches of 20
    python benchmarks/memory.py --backbones paper --batch 20      # the paper's four
    python benchmarks/memory.py --device meta                     # counted also where there is a GPU

With a GPU its allocator is asked. Without one nothing is computed: the step runs on tensors that have shapes and no
values, and the bytes of all tensors that live are counted, weights, gradients and momentum among them. That is exact
for the tensors, takes seconds for any network, and leaves out what libraries use inside one operation.
"""

from __future__ import annotations

import argparse
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_args
from unittest.mock import patch

import machine
import torch
from step_cost import PAPER
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookhere.backbone import ViewMemory
from lookhere.batch import Batch
from lookhere.methods import METHODS, Method, create_method
from lookhere.passes import BatchNorm
from lookhere.weights import BackboneOptions, create_backbone


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that live, from those that are given and those that operations return."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()
        self.add(given)

    def add(self, values: Any) -> None:
        """Count the tensors among these values that are not known yet, until they are gone."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and (key := (storage := value.untyped_storage())._cdata) not in self.known:
                self.known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.drop, key, storage.nbytes())
        self.most = max(self.most, self.now)

    def drop(self, key: int, count: int) -> None:
        """Count a tensor's bytes no more."""
        self.known.discard(key)
        self.now -= count

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.add(result)
        return result


def make_batch(size: int, count: int, device: str) -> Batch:
    return Batch(
        image=torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last),
        label=torch.arange(count, device=device) % 2,
        saliency=torch.zeros(count, 1, size, size, device=device),
        has_saliency=torch.ones(count, dtype=torch.bool, device=device),
        weight=torch.ones(count, device=device),
        index=torch.arange(count, device=device),
    )


def peak(method: Method, batch: Batch) -> int:
    """Return the most bytes that a step of training holds, after a first one that makes the momentum."""
    optimizer = torch.optim.SGD(method.parameters(), 0.005, momentum=0.9, weight_decay=1e-6)

    def step() -> None:
        loss = method(batch)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    given = [*method.parameters(), *method.buffers(), *(x for x in vars(batch).values() if isinstance(x, Tensor))]
    if batch.image.device.type == "cuda":
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            step()
        return torch.cuda.max_memory_allocated()
    with without_values() if batch.image.is_meta else nullcontext(), Living(given) as living:
        for _ in range(2):
            living.most = living.now
            step()
    return living.most


@contextmanager
def without_values() -> Iterator[None]:
    """Let SAGE run on tensors that have shapes only: all samples have a map, and there is no autocast to leave."""
    everyone = lambda mask: torch.arange(len(mask), device=mask.device)[:, None]  # noqa: E731
    with patch.object(Tensor, "nonzero", everyone), patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        yield


def measure(
    backbones: Sequence[str],
    size: int = 224,
    batch: int = 20,
    device: str = "meta",
    modes: Sequence[BatchNorm] = get_args(BatchNorm),
) -> list[dict[str, Any]]:
    """Return the peak memory of a step of cross-entropy and of SAGE in each mode of batch norm, a row each.

    Args:
        backbones: timm's names.
        size: side of the images in pixels.
        batch: images per step.
        device: ``meta`` to count what would live, ``cpu`` to count while computing, ``cuda`` to ask the allocator.
        modes: of batch norm.
    """
    rows: list[dict[str, Any]] = []
    for backbone in backbones:
        plain = 0
        for name, mode, memory in [
            ("cross-entropy", "", "high"),
            *[("sage", mode, memory) for mode in modes for memory in get_args(ViewMemory)],
        ]:
            options = METHODS[name].Options(**{"name": name, **({"batch_norm": mode} if mode else {})})
            method = create_method(options, create_backbone(BackboneOptions(name=backbone, weights="random"), 2, size))
            method = method.to(device).to(memory_format=torch.channels_last).train()
            method.backbone.view_memory = memory
            most = peak(method, make_batch(size, batch, device))
            plain = plain or most
            row = {"backbone": backbone, "method": name, "batch_norm": mode, "view_memory": memory}
            rows.append({**row, "peak_mb": round(most / 2**20, 1), "over_cross_entropy": round(most / plain, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbones", default="resnet50", help="names with commas between them, or paper")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=20)
    best = "cuda" if torch.cuda.is_available() else "meta"
    parser.add_argument("--device", default=best, choices=["meta", "cpu", "cuda"], help=f"by default {best} here")
    machine.add_save(parser)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{a.size} px, batch {a.batch}, {a.device}, torch {torch.__version__}\n")
    rows = measure(PAPER if a.backbones == "paper" else a.backbones.split(","), a.size, a.batch, a.device)
    print(f"{'backbone':30} {'method':14} {'batch_norm':11} {'view_memory':12} {'MiB':>9} {'÷ cross-entropy':>16}")
    for row in rows:
        print(
            f"{row['backbone']:30} {row['method']:14} {row['batch_norm']:11} {row['view_memory']:12} "
            f"{row['peak_mb']:9.1f} {row['over_cross_entropy']:16.2f}"
        )
    if a.save:
        content = {"size": a.size, "batch": a.batch, "device": a.device, "rows": rows}
        machine.save("memory", content, "auto" if a.device == "meta" else a.device)


if __name__ == "__main__":
    main()
