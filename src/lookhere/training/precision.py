"""``training.precision = "auto"``: the arithmetic that trains this method faster on this machine.

Whether bfloat16 pays is a matter of the processor and of the network: units for it may make convolutions three times as
fast, and a network of depthwise convolutions slower. So it is measured, with the real method and a real batch.
"""

from __future__ import annotations

import statistics
import time

import torch

from lookhere import processes
from lookhere.batch import Batch
from lookhere.data.cache import Dataset
from lookhere.errors import TrainingError
from lookhere.methods import Method
from lookhere.passes import frozen_statistics
from lookhere.training.config import Config
from lookhere.training.devices import resolve_device, set_threads
from lookhere.training.prediction import make_batches

REPEATS = 3
GAIN = 0.95
"""bfloat16 is taken where a step takes less than this share of the time that it takes in float32."""


def settle_precision(method: Method, taught: Dataset, config: Config) -> str:
    """Return the arithmetic of a training, float32 or bfloat16; for ``auto`` the faster, on all processes the same.

    The trial is of the method's last stage, in which most epochs are spent. It leaves weights, gradients, running
    statistics and random numbers as they were.

    Args:
        method: as training starts it.
        taught: the data with the maps to train with.
        config: the configuration.

    Raises:
        TrainingError: there is no batch to try.
    """
    if config.training.precision != "auto":
        return config.training.precision
    stage = method.stages()[-1]
    options = config.training.model_copy(update=stage.overrides)
    device = resolve_device(options.device)
    set_threads(options)
    rows = taught.rows("train")
    batches = make_batches(taught, rows, method, options, device, seed=config.seed, missing=config.saliency.missing)
    batch = next(batches.epoch(), None)
    if batch is None:
        raise TrainingError("split train has a single row, too few for a step of training")
    method.to(device).to(memory_format=torch.channels_last).begin(stage)
    ratio = processes.told(compare_precisions(method, batch))
    return "bfloat16" if ratio < GAIN else "float32"


def compare_precisions(method: Method, batch: Batch) -> float:
    """Return the time of a step in bfloat16 over that in float32, the median of a few pairs after a first one."""
    device = batch.image.device
    training = method.training

    def seconds(half: bool) -> float:
        _finish(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = method(batch)["total"]
        loss.backward()
        method.zero_grad(set_to_none=True)
        _finish(device)
        return time.perf_counter() - start

    method.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), frozen_statistics(method):
        pairs = [(seconds(True), seconds(False)) for _ in range(REPEATS + 1)]
    method.train(training)
    return statistics.median(half / full for half, full in pairs[1:])


def _finish(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
