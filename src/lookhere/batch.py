"""The batch: what flows from the data to a method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch of ``b`` samples, on the device where it is used."""

    image: Tensor
    """``b 3 h w`` float, normalised with the backbone's mean and standard deviation."""
    label: Tensor
    """``b`` int64, index into the manifest's classes."""
    saliency: Tensor
    """``b 1 h w`` float in [0, 1], 1 = salient, aligned with the image; zeros where there is no map."""
    has_saliency: Tensor
    """``b`` bool: does this sample have a map that tells regions apart? Guidance terms skip those without."""
    weight: Tensor
    """``b`` float, the samples' weights in the loss; ones unless the manifest gives others."""
    index: Tensor
    """``b`` int64, row of the manifest."""
    step: int = 0
    """Number of this batch among those of the training, from 0 on; the same on all processes that share it."""
    total_weight: Tensor | None = None
    """Where several processes share a batch, the sum of the weights of all of it, a scalar; these samples are then this
    process's share, and means over the batch are over all of it."""

    def __len__(self) -> int:
        return len(self.label)
