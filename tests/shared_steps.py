"""Steps and predictions of one process or of several: ``torchrun --nproc-per-node 2 tests/shared_steps.py FOLDER``."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from torch import Tensor

from lookhere import processes
from lookhere.backbone import Backbone, ViewMemory
from lookhere.batch import Batch
from lookhere.blur import gaussian_blur
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset
from lookhere.data.manifest import Manifest
from lookhere.methods import METHODS, Method, actdiff, corm
from lookhere.training.config import TrainingOptions
from lookhere.training.devices import start_accelerator
from lookhere.training.prediction import make_batches, predict

MAPS = [1, 1, 1, 1, 0, 1, 0, 0, 0, 1]
"""Which rows have a map. In batches of three: of the second batch the second of two processes has none, of the third
nobody has one, and of the fourth, a single row, the second process has no sample."""

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("cross-entropy", {}),
    "sage": ("sage", {}),
    "sage joint, own margins attached": ("sage", {"detach_margin": False, "cross_entropy_on": "clean+salient_kept"}),
    "sage per view, batch margin": ("sage", {"margin": "batch", "batch_norm": "per_view"}),
    "sage clean, batch margin attached": ("sage", {"margin": "batch", "detach_margin": False, "batch_norm": "clean"}),
    "sage in every second step": ("sage", {"guided_every": 2}),
    "cyborg": ("cyborg", {}),
    "viser": ("cyborg", {"alpha": "dynamic"}),
    "unet-gaze": ("unet-gaze", {}),
    "mentor": ("mentor", {"map_decoder": "unet", "then": "sage"}),
    "gg-cam": ("gg-cam", {}),
    "gradcam-mse": ("gradcam-mse", {}),
    "energy": ("energy", {}),
    "energy of input gradients": ("energy", {"attribution": "input-gradient"}),
    "blur-augmentation": ("blur-augmentation", {"mode": "expand", "levels": (0, 2)}),
    "actdiff": ("actdiff", {}),
    "corm": ("corm", {}),
    "rrr": ("rrr", {"lam": 1e6}),
    "harmonization": ("harmonization", {}),
}
"""Methods whose steps do not depend on how many processes share them; what is drawn at random is replaced."""

DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "sage, swapped": ("sage", {"views": {"degrade": "swap"}, "margin": "batch"}),
    "background-swap": ("background-swap", {}),
}
"""Methods that draw partners within the share."""


@cache
def make_dataset() -> Dataset:
    """Ten rows of noise with weights, the last of which is the only one in its batch."""
    draws = np.random.default_rng(0)
    n, side = len(MAPS), 64
    maps = np.zeros((n, side, side), np.uint8)
    for i, one in enumerate(maps):
        one[8 : 24 + i, 16:40] = draws.integers(1, 256, (16 + i, 24))
    names = [f"{i}.png" for i in range(n)]
    manifest = Manifest(
        path=Path("m.csv"),
        root=Path(),
        classes=("real", "attack"),
        positive="attack",
        positive_reason="",
        image=names,
        image_file=names,
        label=np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0]),
        split=np.array(["train"] * n),
        saliency=[f"map{name}" if has else "" for has, name in zip(MAPS, names, strict=True)],
        type=[""] * n,
        group=[""] * n,
        weight=np.array([0.5, 2, 1, 0, 1, 3, 1, 0.25, 1, 1.5]),
        line=np.arange(n) + 2,
    )
    images = draws.integers(0, 256, (n, 3, side, side), np.uint8)
    return Dataset(manifest, images, maps, np.where(MAPS, np.arange(n), -1), np.zeros(n, bool), "sha")


@cache
def make_accelerator() -> Accelerator:
    """The one of this process."""
    return start_accelerator(TrainingOptions(device="cpu"))


def make_method(name: str, options: dict[str, Any]) -> Method:
    """A method in double precision, in evaluation mode: its batch norm takes each sample by itself."""
    torch.manual_seed(0)
    kind = METHODS[name]
    method = kind(Backbone(timm.create_model("test_resnet", num_classes=2)), kind.Options(name=name, **options))
    method.backbone.model.get_classifier().weight.data.mul_(20)  # away from indecision, where some terms are all but 0
    return method.double().eval()


def shares(dtype: torch.dtype = torch.float64) -> Iterator[Batch]:
    """This process's shares of four batches."""
    batches = Batches(
        make_dataset(),
        np.arange(len(MAPS)),
        batch_size=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        part=processes.rank(),
        parts=processes.count(),
    )
    for batch in batches.epoch():
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        yield replace(batch, **{name: t.to(dtype) for name, t in tensors.items() if t.is_floating_point()})


def steps(
    name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64, memory: ViewMemory = "high"
) -> list[dict[str, Tensor]]:
    """The parts of the loss of each batch, and under "gradient" that of all parameters, in every stage."""
    method, accelerator, found = make_method(name, options).to(dtype), make_accelerator(), []
    method.backbone.view_memory = memory
    for stage in method.stages():
        method.begin(stage)
        wrapped = accelerator.prepare(method)
        for batch in shares(dtype):
            torch.manual_seed(0)
            parts = wrapped(batch)
            accelerator.backward(parts["total"])
            trained = [p for p in method.parameters() if p.requires_grad]
            gradient = torch.cat([p.grad.flatten() for p in trained])
            found.append({"gradient": gradient, **{key: value.detach() for key, value in parts.items()}})
            method.zero_grad()
        del wrapped
        if len(method.stages()) > 1:
            accelerator.free_memory()
    return found


def predictions() -> tuple[Tensor, Tensor, int]:
    """Logits and labels of all rows, in float32 and batches of three, and the rows that this process has predicted."""
    method = make_method("cross-entropy", {}).float()
    seen = 0

    class Counting(Method):
        def predict(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
            nonlocal seen
            seen += len(image)
            return super().predict(image, saliency)

    counting = Counting(method.backbone, method.options)
    options = TrainingOptions(batch_size=3)
    dataset = make_dataset()
    rows = np.arange(len(dataset))
    return (*predict(counting, make_batches(dataset, rows, method, options, torch.device("cpu"))), seen)


def everything(cases: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """What this process finds."""
    actdiff.shuffle_outside = lambda images, inside: torch.where(inside, images, images.flip(-1))
    corm.noise_outside = lambda images, saliency, noise: torch.lerp(gaussian_blur(images, 7, 2.0), images, saliency)
    found: dict[str, Any] = {case: steps(*given) for case, given in cases.items()}
    found["sage in float32"] = steps("sage", {"margin": "batch", "detach_margin": False}, torch.float32)
    for mode in ("joint", "per_view"):
        found[f"sage {mode}, little memory"] = steps("sage", {"batch_norm": mode}, memory="low")
    found["predictions"] = predictions()
    found["mean of some"] = processes.mean(torch.arange(3.0)[: 3 - 3 * processes.rank()])
    return found


if __name__ == "__main__":
    with processes.joined(torch.device("cpu")):
        path = Path(sys.argv[1]) / f"{processes.rank()}.pickle"
        path.write_bytes(pickle.dumps(everything(SAME | DRAWN)))
