"""What a method makes of the rows of a data set: batches for its training and evaluation, logits, errors of maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lookhere import processes
from lookhere.backbone import Backbone
from lookhere.batch import Batch
from lookhere.data.batches import Batches, Missing
from lookhere.data.cache import Dataset
from lookhere.map_losses import map_mse
from lookhere.methods import Method
from lookhere.training.config import TrainingOptions

T = TypeVar("T")


def make_batches(
    dataset: Dataset,
    rows: np.ndarray,
    method: Method,
    options: TrainingOptions,
    device: torch.device,
    seed: int | None = None,
    missing: Missing = "skip",
) -> Batches:
    """Return batches of some rows, normalised for a method's backbone; with a seed shuffled and shared for training."""
    backbone = method.backbone
    assert isinstance(backbone, Backbone)  # a tapped module is for loops of one's own
    part, parts = (0, 1) if seed is None else (processes.rank(), processes.count())
    return Batches(
        dataset,
        rows,
        batch_size=options.batch_size,
        mean=backbone.mean,
        std=backbone.std,
        device=device,
        shuffle_seed=seed,
        drop_single=seed is not None,
        missing=missing,
        part=part,
        parts=parts,
    )


@torch.inference_mode()
def predict(method: Method, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return logits ``n k`` (float32, on the CPU) and labels ``n`` of all batches, in their order."""
    method.eval()
    found = evaluated(batches, lambda b: (method.predict(b.image, b.saliency).float().cpu(), b.label.cpu()))
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def map_error(method: Method, batches: Batches) -> float:
    """Return the mean squared error of predicted maps over all batches, whose samples all have one."""
    method.eval()
    errors = evaluated(batches, lambda batch: map_mse(method.predict_map(batch.image), batch.saliency).cpu())
    return float(torch.cat(errors).double().mean())


def evaluated(batches: Batches, evaluate: Callable[[Batch], T]) -> list[T]:
    """Return what a function makes of each batch, in order; processes share them out and have all the results.

    A batch is never divided, so that the results are those of one process to the last bit.
    """
    mine = range(processes.rank(), len(batches), processes.count())
    found = processes.merged(dict(zip(mine, map(evaluate, batches.epoch(numbers=mine)), strict=True)))
    return [found[number] for number in range(len(batches))]
