"""A small random batch in double precision, for tests of methods."""

from __future__ import annotations

import torch

from lookhere.batch import Batch


def small_batch(b: int, maps: int, size: int, weight: list[float] | None = None) -> Batch:
    """Return ``b`` images of ``size`` pixels in three classes, the first ``maps`` of them with a random map."""
    generator = torch.Generator().manual_seed(1)
    has = torch.arange(b) < maps
    return Batch(
        image=torch.randn(b, 3, size, size, generator=generator, dtype=torch.float64),
        label=torch.arange(b) % 3,
        saliency=torch.rand(b, 1, size, size, generator=generator, dtype=torch.float64) * has.view(-1, 1, 1, 1),
        has_saliency=has,
        weight=torch.tensor(weight or [1.0] * b, dtype=torch.float64)[:b],
        index=torch.arange(b),
    )
