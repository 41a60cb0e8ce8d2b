"""Batches gathered from a decoded data set, in an order that depends on seed and epoch only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lookhere.batch import Batch
from lookhere.data.cache import Dataset


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
    ) -> None:
        self.device = torch.device(device)
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.rows = np.asarray(rows, np.int64)
        self.weight = torch.from_numpy(dataset.manifest.weight[self.rows]).float()
        self.label = torch.from_numpy(dataset.manifest.label[self.rows])
        self.map_index = dataset.map_index[self.rows]
        self.guided = torch.from_numpy(dataset.guided[self.rows])
        self.length = len(self.rows)
        if drop_single and self.length % batch_size == 1:
            self.length -= 1
        # (pixel / 255 - mean) / std as one multiplication and one addition.
        deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
        self.scale = (1 / (255 * deviation)).float().to(self.device)
        self.shift = (-torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1) / deviation).float().to(self.device)
        self.images: np.ndarray | Tensor = dataset.images
        self.maps: np.ndarray | Tensor = dataset.maps
        self.source = self.rows
        if self.device.type == "cuda" and self._bytes() < torch.cuda.mem_get_info(self.device)[0] / 2:
            self._move()

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

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch; their order does not depend on earlier epochs, so a run can resume at any."""
        order = self._order(epoch)
        for start in range(0, self.length, self.batch_size):
            yield self._batch(order[start : start + self.batch_size][: self.length - start])

    def _order(self, epoch: int) -> np.ndarray:
        if self.shuffle_seed is None:
            return np.arange(len(self.rows))
        seed = np.random.SeedSequence((self.shuffle_seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
        return torch.randperm(len(self.rows), generator=generator).numpy()

    def _batch(self, chosen: np.ndarray) -> Batch:
        pixels = self._gather(self.images, self.source[chosen])
        image = torch.addcmul(self.shift, pixels.to(torch.float32), self.scale)
        image = image.contiguous(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
        map_index = self.map_index[chosen]
        if (map_index >= 0).any():
            # Samples without a map take any, times zero: one gather, without a special case.
            weight = torch.from_numpy(map_index >= 0).to(self.device).view(-1, 1, 1, 1) / 255
            saliency = self._gather(self.maps, map_index.clip(0)).unsqueeze(1) * weight
        else:
            saliency = image.new_zeros(len(chosen), 1, *image.shape[2:])
        return Batch(
            image=image,
            label=self.label[chosen].to(self.device),
            saliency=saliency,
            has_saliency=self.guided[chosen].to(self.device),
            weight=self.weight[chosen].to(self.device),
            index=torch.from_numpy(self.rows[chosen]).to(self.device),
        )

    def _gather(self, store: np.ndarray | Tensor, index: np.ndarray) -> Tensor:
        if isinstance(store, Tensor):
            return store[torch.from_numpy(index).to(self.device)]
        return torch.from_numpy(store[index]).to(self.device)
