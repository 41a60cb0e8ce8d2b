"""The training loop. It knows batches, parts of a loss and stages, and nothing of methods."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lookhere import launch, processes
from lookhere.batch import Batch
from lookhere.data.cache import Dataset
from lookhere.errors import TrainingError
from lookhere.methods import Method
from lookhere.passes import frozen_statistics
from lookhere.progress import Track
from lookhere.training.checkpoint import (
    Position,
    latest_checkpoint,
    load_model,
    load_optimizer,
    save_checkpoint,
    selected_checkpoint,
    write_tensors,
)
from lookhere.training.config import Config, TrainingOptions
from lookhere.training.devices import start_accelerator
from lookhere.training.folder import RunFolder
from lookhere.training.precision import settle_precision
from lookhere.training.prediction import make_batches, map_error, predict


def fit(method: Method, dataset: Dataset, taught: Dataset, config: Config, folder: RunFolder) -> Position:
    """Train a method through all of its stages and leave it with the selected weights.

    Labels are validated on the maps of ``dataset``, as at test time; all else uses those of ``taught``, the same data
    with the maps to train with (``control_maps``).

    A folder that holds checkpoints is continued from its last whole epoch, with the result of an uninterrupted run.
    Of several processes that share the training, the first alone writes to it; the others read checkpoints there.

    Raises:
        TrainingError: a loss that is not finite, no disk space. The last checkpoint is kept.
        UsageError: no such device.
    """
    found = processes.told(latest_checkpoint(folder.checkpoints) if launch.is_first() else None)
    position = found[0] if found else Position()
    stages = method.stages()
    precision = position.precision or settle_precision(method, taught, config)
    accelerator = start_accelerator(config.training, precision)
    trainer = partial(_Stage, method, dataset, taught, config, accelerator, folder)
    steps = sum(one.options.epochs * len(one.training) for one in map(trainer, range(len(stages))))
    arithmetic = f", {precision}" if config.training.precision == "auto" else ""
    with Track(f"{method.name}, seed {config.seed}{arithmetic}", steps) as track:
        for index in range(position.stage, len(stages)):
            if index > position.stage:
                position = Position(stage=index, seconds=position.seconds)
            position = replace(position, precision=precision)
            resume_from = found[1] if found and found[0].stage == index else None
            position = trainer(index).train(position, resume_from, track)
            if processes.count() > 1:
                accelerator.free_memory()  # with the hooks on the parameters: the next stage has its own
                processes.wait()  # for the last checkpoint
            load_model(selected_checkpoint(folder.checkpoints, position), method)
            if index < len(stages) - 1 and launch.is_first():  # a later stage changes the weights this one ends with
                write_tensors(folder.stage_weights(stages[index].name), method.state_dict())
    return position


class _Stage:
    """One stage of a training."""

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        taught: Dataset,
        config: Config,
        accelerator: Accelerator,
        folder: RunFolder,
        index: int,
    ) -> None:
        self.dataset, self.seed, self.index, self.stage = dataset, config.seed, index, method.stages()[index]
        self.options = config.training.model_copy(update=self.stage.overrides)
        self.accelerator, self.folder = accelerator, folder
        self.method = method.to(accelerator.device).to(memory_format=torch.channels_last)
        self.method.backbone.view_memory = self.options.view_memory
        batches = partial(make_batches, method=method, options=self.options, device=accelerator.device)
        if self.stage.predicts == "map":  # those who have a map of their own, whatever stands in for others elsewhere
            mapped = {split: taught.rows(split, guided=True) for split in ("train", "val")}
            self.training = batches(taught, mapped["train"], seed=self.seed)
            self.validation = batches(taught, mapped["val"])
        else:
            self.training = batches(taught, taught.rows("train"), seed=self.seed, missing=config.saliency.missing)
            self.validation = batches(dataset, dataset.rows("val"))

    def train(self, position: Position, resume_from: Path | None, track: Track) -> Position:
        """Train from a position to the stage's last epoch and return the position reached."""
        self.method.begin(self.stage)
        if self.stage.predicts == "map" and not len(self.validation):
            warnings.warn(
                f"split val has no map to select an epoch of stage {self.stage.name} by: its last one is kept",
                stacklevel=2,
            )
        if processes.count() > 1:
            self.accelerator.ddp_handler.find_unused_parameters = self._leaves_parameters_out()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.method, make_optimizer(self.method, self.options))
        if processes.count() > 1:
            self.wrapped.broadcast_buffers = False  # ``_epoch`` does it, once
        if resume_from is not None:
            load_model(resume_from, self.method)
            load_optimizer(resume_from, self.optimizer)
        if launch.is_first():
            lines = [line for line in self.folder.read_metrics() if self._is_before(line, position)]
            self.folder.rewrite_metrics(lines)
        track.advance(len(self.training) * position.epoch, note="resumed" if position.epoch else "")
        for epoch in range(position.epoch + 1, self.options.epochs + 1):
            started = time.monotonic()
            rate = self.options.learning_rate * self.options.decay ** ((epoch - 1) // self.options.decay_every)
            train, val = self._epoch(epoch, rate, track), self._validate(epoch)
            seconds = time.monotonic() - started
            position = self._select(replace(position, epoch=epoch, seconds=position.seconds + seconds), val)
            done = {"stage": self.stage.name, "epoch": epoch, "learning_rate": rate, "seconds": seconds}
            if launch.is_first():
                # Before the checkpoint: a resumed run drops the lines that are ahead of it.
                self.folder.append_metrics({**done, "processes": processes.count(), "train": train, "val": val})
                save_checkpoint(self.folder.checkpoints, position, self.method, self.optimizer)
        return position

    def _is_before(self, line: dict[str, Any], position: Position) -> bool:
        return line["stage"] != self.stage.name or line["epoch"] <= position.epoch

    def _leaves_parameters_out(self) -> bool:
        """Try a step: does it leave a parameter without a gradient, such as one after the last level of a pyramid?"""
        self.method.train()
        with frozen_statistics(self.method), self.accelerator.autocast():
            parts = self.method(next(self.training.epoch()))
        parts["total"].backward()
        left_out = any(p.requires_grad and p.grad is None for p in self.method.parameters())
        self.method.zero_grad(set_to_none=True)
        return any(processes.merged({processes.rank(): left_out}).values())

    def _epoch(self, epoch: int, rate: float, track: Track) -> dict[str, float]:
        """Take one pass over the training rows and return the mean of each part of the loss."""
        torch.manual_seed(epoch_seed(self.seed, self.index, epoch, processes.rank()))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        stage = "" if len(self.method.stages()) == 1 else f"{self.stage.name}, "
        sums: dict[str, Tensor] = {}
        count = 0
        for step, batch in enumerate(self.training.epoch(epoch), start=1):
            parts = self.wrapped(batch)
            if not torch.isfinite(parts["total"]):
                raise TrainingError(self._not_finite(epoch, step, batch, parts))
            self.optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(parts["total"])
            self.optimizer.step()
            size = min(self.training.batch_size, self.training.length - count)
            count += size
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double() * size
            track.advance(note=f"{stage}epoch {epoch}/{self.options.epochs}")
        for buffer in self.method.buffers():  # such as the statistics of batch norm: evaluate and keep the first one's
            processes.copy(buffer)
        # Losses are the same everywhere; what else a method tells is of each share.
        return {name: float(processes.total(value)) / processes.count() / count for name, value in sums.items()}

    def _validate(self, epoch: int) -> dict[str, float | None]:
        if not len(self.validation):
            return {}
        if self.stage.predicts == "map":
            return {"map_mse": map_error(self.method, self.validation)}
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
        if self.stage.predicts == "map":
            if "map_mse" not in val:  # no map in val: said before training
                return replace(position, best_epoch=position.epoch)
            value = val["map_mse"] and -val["map_mse"]
        elif self.options.select == "last":
            return replace(position, best_epoch=position.epoch)
        else:
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


def make_optimizer(method: Method, options: TrainingOptions) -> torch.optim.Optimizer:
    """Return the optimiser that the options name, over the parameters that a method trains in its current stage."""
    rate, decay = options.learning_rate, options.weight_decay
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=rate, momentum=options.momentum, weight_decay=decay)
    adam = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return adam(trained, lr=rate, weight_decay=decay)


def auroc(logits: Tensor, label: Tensor) -> float | None:
    """Return the AUROC of logits ``n k`` (one class against the rest, averaged, where k > 2); None if undefined."""
    present = label.unique()
    if len(present) < logits.shape[1]:
        return None
    if logits.shape[1] == 2:
        return float(roc_auc_score(label, (logits[:, 1] - logits[:, 0]).double()))
    margins = (logits - torch.logsumexp(logits, 1, keepdim=True)).double()
    return float(np.mean([roc_auc_score(label == k, margins[:, k]) for k in present.tolist()]))


def epoch_seed(seed: int, stage: int, epoch: int, rank: int = 0) -> int:
    """Return the seed of a process's random choices in an epoch, far from those of other seeds, stages and epochs."""
    parts = [seed, stage, epoch, *[rank] * (rank > 0)]
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


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
            raise TrainingError(_out_of_memory(config, method)) from error
        if "more than 1 value per channel" in text:
            raise TrainingError(
                "batch norm needs more than one value per channel: raise training.batch_size or data.size"
            ) from error
        raise


def _out_of_memory(config: Config, method: Method) -> str:
    learns_maps = method.stage.predicts == "map"  # such a stage has batches of its own, and one view of each image
    options = config.training.model_copy(update=method.stage.overrides)
    views = 1 if learns_maps else getattr(method, "then", method).passes
    lower = "method.map_batch_size" if learns_maps else "training.batch_size"
    spare = 'set training.view_memory = "low", or ' if views > 1 and options.view_memory == "high" else ""
    return (
        f"out of memory with batches of {options.batch_size} images of {config.data.size} px in {views} view(s) each; "
        f"{spare}lower {lower} or data.size"
    )
