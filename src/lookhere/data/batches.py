"""Batches gathered from a decoded data set, in an order that depends on seed and epoch only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lookhere.batch import Batch
from lookhere.data.cache import UNIFORM, Dataset
from lookhere.data.manifest import Missing


class Batches:
    """The rows of a data set in batches of ``batch_size``; the last one may be smaller.

    On a CUDA device the rows' pixels are kept there as uint8 if they take less than half of its free memory; elsewhere
    each batch is gathered from the memory-mapped file.

    Args:
        dataset: decoded images and maps.
        rows: rows of the manifest to go through.
        batch_size: samples per batch.
        mean: of the backbone's input, 3 numbers for images in [0, 1].
        std: of the backbone's input, likewise.
        device: where batches are made.
        shuffle_seed: shuffle with this seed; by default batches follow ``rows``.
        drop_single: leave out a last batch of one sample, which batch norm cannot take in training.
        missing: what samples without a map that guides get: none, a uniform map (0.5 everywhere), or that of another of
            these rows, drawn anew in each epoch by the shuffle's seed.
        part: which share of each batch to yield, from 0: of every ``parts`` samples, the one of this number. A share of
            less than two, which batch norm may not take in training, is filled up with others of the batch, with a
            weight of 0 and no map.
        parts: the number of processes that share the batches; each knows their order without asking.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        shuffle_seed: int | None = None,
        drop_single: bool = False,
        missing: Missing = "skip",
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.part, self.parts = part, parts
        self.device = torch.device(device)
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.rows = np.asarray(rows, np.int64)
        self.weight = torch.from_numpy(dataset.manifest.weight[self.rows]).float()
        self.label = torch.from_numpy(dataset.manifest.label[self.rows])
        self.map_index = dataset.map_index[self.rows]
        self.guided = dataset.guided[self.rows]
        self.missing: Missing = missing if self.guided.any() else "skip"
        self.length = len(self.rows)
        if drop_single and self.length % batch_size == 1:
            self.length -= 1
        # (pixel / 255 - mean) / std as one multiplication and one addition.
        deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
        self.scale = (1 / (255 * deviation)).float().to(self.device)
        self.shift = (-torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1) / deviation).float().to(self.device)
        self.images: np.ndarray | Tensor = dataset.images
        self.maps: np.ndarray | Tensor = dataset.maps
        self.flipped = dataset.flipped
        self.source = self.rows
        self.placed = False

    def _bytes(self) -> int:
        shown = int(np.count_nonzero(np.unique(self.map_index) >= 0))
        return len(self.rows) * math.prod(self.images.shape[1:]) + shown * math.prod(self.maps.shape[1:])

    def _move(self) -> None:
        """Keep the pixels of these rows on the device; indices then count within them."""
        used, inverse = np.unique(self.map_index[self.map_index >= 0], return_inverse=True)
        self.images = torch.from_numpy(np.asarray(self.images[self.rows])).to(self.device)
        self.maps = torch.from_numpy(np.asarray(self.maps[used])).to(self.device)
        self.source = np.arange(len(self.rows))
        self.map_index = self.map_index.copy()
        self.map_index[self.map_index >= 0] = inverse

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def epoch(self, epoch: int = 0, numbers: Iterable[int] | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch; their order does not depend on earlier epochs, so a run can resume at any.

        Args:
            epoch: number of the epoch.
            numbers: which of its batches, from 0; by default all.
        """
        if not self.placed:  # not before it is used: another stage of the training may hold the memory until then
            self.placed = True
            if self.device.type == "cuda" and self._bytes() < torch.cuda.mem_get_info(self.device)[0] / 2:
                self._move()
        order, maps = self._order(epoch), self._maps(epoch)
        for number in range(len(self)) if numbers is None else numbers:
            start = number * self.batch_size
            chosen = order[start : min(start + self.batch_size, self.length)]
            batch = self._batch(chosen, *maps) if self.parts == 1 else self._share(chosen, *maps)
            yield replace(batch, step=epoch * len(self) + number)

    def _order(self, epoch: int) -> np.ndarray:
        if self.shuffle_seed is None:
            return np.arange(len(self.rows))
        seed = np.random.SeedSequence((self.shuffle_seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
        return torch.randperm(len(self.rows), generator=generator).numpy()

    def _maps(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of each row's map in this epoch, and whether that map guides."""
        if self.missing in ("skip", "error"):  # where missing maps are an error, there are none here
            return self.map_index, self.guided
        stand_in: np.ndarray | int = UNIFORM
        if self.missing == "borrow":
            draws = np.random.default_rng((self.shuffle_seed or 0, epoch, 1))
            stand_in = draws.choice(self.map_index[self.guided], len(self.rows))
        return np.where(self.guided, self.map_index, stand_in), np.ones_like(self.guided)

    def _share(self, chosen: np.ndarray, map_index: np.ndarray, guided: np.ndarray) -> Batch:
        """Return this process's share of the batch of some rows."""
        mine = chosen[self.part :: self.parts]
        filling = chosen.take(range(self.part + len(mine), self.part + 2), mode="wrap")
        batch = self._batch(np.concatenate([mine, filling]), map_index, guided)
        batch = replace(batch, total_weight=self.weight[chosen].sum().to(self.device))
        if len(filling) == 0:
            return batch
        real = torch.arange(len(batch), device=self.device) < len(mine)
        saliency = batch.saliency * real.view(-1, 1, 1, 1)
        return replace(batch, weight=batch.weight * real, saliency=saliency, has_saliency=batch.has_saliency & real)

    def _batch(self, chosen: np.ndarray, map_index: np.ndarray, guided: np.ndarray) -> Batch:
        pixels = self._gather(self.images, self.source[chosen])
        image = torch.addcmul(self.shift, pixels.to(torch.float32), self.scale)
        image = image.contiguous(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
        map_index = map_index[chosen]
        if (map_index >= 0).any():
            # Samples without a map take any, times zero: one gather, without a special case.
            weight = torch.from_numpy(map_index >= 0).to(self.device).view(-1, 1, 1, 1) / 255
            drawn = self._gather(self.maps, map_index.clip(0)).unsqueeze(1)
            saliency = (255 - drawn if self.flipped else drawn) * weight
        else:
            saliency = image.new_zeros(len(chosen), 1, *image.shape[2:])
        if (map_index == UNIFORM).any():
            saliency[torch.from_numpy(map_index == UNIFORM).to(self.device)] = 0.5
        return Batch(
            image=image,
            label=self.label[chosen].to(self.device),
            saliency=saliency,
            has_saliency=torch.from_numpy(guided[chosen]).to(self.device),
            weight=self.weight[chosen].to(self.device),
            index=torch.from_numpy(self.rows[chosen]).to(self.device),
        )

    def _gather(self, store: np.ndarray | Tensor, index: np.ndarray) -> Tensor:
        if isinstance(store, Tensor):
            return store[torch.from_numpy(index).to(self.device)]
        return torch.from_numpy(store[index]).to(self.device)
