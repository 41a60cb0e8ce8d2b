"""The training loop. It knows batches, parts of a loss and stages, and nothing of methods."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lookhere.backbone import Backbone
from lookhere.batch import Batch
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset
from lookhere.errors import TrainingError, UsageError
from lookhere.methods import Method
from lookhere.progress import Track
from lookhere.training.checkpoint import (
    Position,
    latest_checkpoint,
    load_model,
    load_optimizer,
    save_checkpoint,
    selected_checkpoint,
)
from lookhere.training.config import Config, TrainingOptions
from lookhere.training.folder import RunFolder


def fit(method: Method, dataset: Dataset, config: Config, folder: RunFolder) -> Position:
    """Train a method through all of its stages and leave it with the selected weights.

    A folder that holds checkpoints is continued from its last whole epoch, with the result of an uninterrupted run.

    Raises:
        TrainingError: a loss that is not finite, no disk space. The last checkpoint is kept.
        UsageError: no such device.
    """
    found = latest_checkpoint(folder.checkpoints)
    position = found[0] if found else Position()
    stages = method.stages()
    options = [config.training.model_copy(update=stage.overrides) for stage in stages]
    accelerator = start_accelerator(config.training)
    steps = sum(
        o.epochs * len(make_batches(dataset, "train", method, o, accelerator.device, config.seed)) for o in options
    )
    with Track(f"{method.name}, seed {config.seed}", steps) as track:
        for index in range(position.stage, len(stages)):
            if index > position.stage:
                position = Position(stage=index, seconds=position.seconds)
            trainer = _Stage(method, dataset, config.seed, index, options[index], accelerator, folder, track)
            position = trainer.train(position, found[1] if found and found[0].stage == index else None)
            load_model(selected_checkpoint(folder.checkpoints, position), method)
    return position


class _Stage:
    """One stage of a training."""

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        seed: int,
        stage: int,
        options: TrainingOptions,
        accelerator: Accelerator,
        folder: RunFolder,
        track: Track,
    ) -> None:
        self.dataset, self.seed, self.stage, self.options = dataset, seed, stage, options
        self.name = method.stages()[stage].name
        self.accelerator, self.folder, self.track = accelerator, folder, track
        self.method = method.to(accelerator.device).to(memory_format=torch.channels_last)
        self.wrapped, self.optimizer = accelerator.prepare(self.method, make_optimizer(self.method, options))
        self.training = make_batches(dataset, "train", method, options, accelerator.device, seed=seed)
        self.validation = make_batches(dataset, "val", method, options, accelerator.device)

    def train(self, position: Position, resume_from: Path | None) -> Position:
        """Train from a position to the stage's last epoch and return the position reached."""
        if resume_from is not None:
            load_model(resume_from, self.method)
            load_optimizer(resume_from, self.optimizer)
        lines = [line for line in self.folder.read_metrics() if self._is_before(line, position)]
        self.folder.rewrite_metrics(lines)
        self.track.advance(len(self.training) * position.epoch, note="resumed" if position.epoch else "")
        for epoch in range(position.epoch + 1, self.options.epochs + 1):
            started = time.monotonic()
            rate = self.options.learning_rate * self.options.decay ** ((epoch - 1) // self.options.decay_every)
            train, val = self._epoch(epoch, rate), self._validate(epoch)
            seconds = time.monotonic() - started
            position = self._select(replace(position, epoch=epoch, seconds=position.seconds + seconds), val)
            done = {"stage": self.name, "epoch": epoch, "learning_rate": rate, "seconds": seconds}
            # Before the checkpoint: a resumed run drops the lines that are ahead of it.
            self.folder.append_metrics({**done, "train": train, "val": val})
            save_checkpoint(self.folder.checkpoints, position, self.method, self.optimizer)
        return position

    def _is_before(self, line: dict[str, Any], position: Position) -> bool:
        return line["stage"] != self.name or line["epoch"] <= position.epoch

    def _epoch(self, epoch: int, rate: float) -> dict[str, float]:
        """Take one pass over the training rows and return the mean of each part of the loss."""
        torch.manual_seed(epoch_seed(self.seed, self.stage, epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        sums: dict[str, Tensor] = {}
        count = 0
        for step, batch in enumerate(self.training.epoch(epoch), start=1):
            parts = self.wrapped(batch)
            if not torch.isfinite(parts["total"]):
                raise TrainingError(self._not_finite(epoch, step, batch, parts))
            self.optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(parts["total"])
            self.optimizer.step()
            count += len(batch)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double() * len(batch)
            self.track.advance(note=f"epoch {epoch}/{self.options.epochs}")
        return {name: float(value) / count for name, value in sums.items()}

    def _validate(self, epoch: int) -> dict[str, float | None]:
        if not len(self.validation):
            return {}
        logits, label = predict(self.method, self.validation)
        if not torch.isfinite(logits).all():
            raise TrainingError(
                f"epoch {epoch}: the network gives logits that are not finite; lower training.learning_rate"
            )
        return {
            "loss": float(F.cross_entropy(logits, label)),
            "accuracy": float((logits.argmax(1) == label).double().mean()),
            "auroc": auroc(logits, label),
        }

    def _select(self, position: Position, val: dict[str, float | None]) -> Position:
        if self.options.select == "last":
            return replace(position, best_epoch=position.epoch)
        value = val[self.options.select.removeprefix("val_")]
        assert value is not None  # a split val that cannot select is refused before training
        if position.best_value is None or value >= position.best_value:
            return replace(position, best_epoch=position.epoch, best_value=value)
        return position

    def _not_finite(self, epoch: int, step: int, batch: Batch, parts: dict[str, Tensor]) -> str:
        terms = ", ".join(f"{name} {float(value.detach()):g}" for name, value in parts.items())
        samples = ", ".join(self.dataset.manifest.image[i] for i in batch.index.tolist())
        return (
            f"the loss is not finite at epoch {epoch}, step {step}: {terms}. Samples: {samples}. "
            "The last checkpoint is kept; lower training.learning_rate, or look at these samples"
        )


def make_batches(
    dataset: Dataset,
    split: str,
    method: Method,
    options: TrainingOptions,
    device: torch.device,
    seed: int | None = None,
) -> Batches:
    """Return the batches of a split, normalised for a method's backbone; shuffled if a seed is given."""
    backbone = method.backbone
    assert isinstance(backbone, Backbone)  # a tapped module is for loops of one's own
    return Batches(
        dataset,
        dataset.manifest.rows(split),
        batch_size=options.batch_size,
        mean=backbone.mean,
        std=backbone.std,
        device=device,
        shuffle_seed=seed,
        drop_single=seed is not None,
    )


@torch.inference_mode()
def predict(method: Method, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return logits ``n k`` (float32, on the CPU) and labels ``n`` of all batches, in their order."""
    method.eval()
    logits, labels = [], []
    for batch in batches.epoch():
        logits.append(method.predict(batch.image, batch.saliency).float().cpu())
        labels.append(batch.label.cpu())
    return torch.cat(logits), torch.cat(labels)


def make_optimizer(method: Method, options: TrainingOptions) -> torch.optim.Optimizer:
    """Return the optimiser that the options name, over all parameters of a method."""
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(method.parameters(), lr=rate, momentum=options.momentum, weight_decay=decay)
    adam = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return adam(method.parameters(), lr=rate, weight_decay=decay)


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """Return an accelerator for the device and precision that the options name.

    Raises:
        UsageError: no such device, or more than one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("one training over several processes is not supported yet; start one process")
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    # Its state outlives a training; the next one in this process may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if options.precision == "bfloat16" else "no")


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, ``auto`` being the GPU if there is one; raises UsageError where it is absent."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("not a device to train on")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = torch.accelerator.current_accelerator(check_available=True)
        known = f"cpu, {there.type}:0 … {there.type}:{torch.accelerator.device_count() - 1}" if there else "cpu"
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"training.device: no device '{name}' here ({reason}); there is: {known}") from None
    return device


def auroc(logits: Tensor, label: Tensor) -> float | None:
    """Return the AUROC of logits ``n k`` (one class against the rest, averaged, where k > 2); None if undefined."""
    present = label.unique()
    if len(present) < logits.shape[1]:
        return None
    if logits.shape[1] == 2:
        return float(roc_auc_score(label, (logits[:, 1] - logits[:, 0]).double()))
    margins = (logits - torch.logsumexp(logits, 1, keepdim=True)).double()
    return float(np.mean([roc_auc_score(label == k, margins[:, k]) for k in present.tolist()]))


def epoch_seed(seed: int, stage: int, epoch: int) -> int:
    """Return the seed of an epoch's random choices, far from those of other seeds, stages and epochs."""
    return int(np.random.SeedSequence([seed, stage, epoch]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def explained(config: Config, method: Method) -> Iterator[None]:
    """Turn what a machine or a batch cannot give into an error that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise TrainingError(
                f"disk full: {error.filename or 'the run folder'} cannot be written; free some space and use --resume"
            ) from error
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text:
            raise TrainingError(
                f"out of memory with batches of {config.training.batch_size} images of {config.data.size} px in "
                f"{method.passes} view(s) each; lower training.batch_size or data.size"
            ) from error
        if "more than 1 value per channel" in text:
            raise TrainingError(
                "batch norm needs more than one value per channel: raise training.batch_size or data.size"
            ) from error
        raise
