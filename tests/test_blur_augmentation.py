"""Blur augmentation against scipy's Gaussian filter, sample by sample."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import nn

import transcription
from lookhere.backbone import Tapped
from lookhere.batch import Batch
from lookhere.blur import blur_each
from lookhere.methods.blur_augmentation import BlurAugmentation, BlurAugmentationOptions
from test_sage import make_batch, network


def blurred(channel: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Blur over the pixels that are there: outside counts as nothing, and the weights are made up for it."""
    if sigma == 0:
        return channel
    kind = {"sigma": sigma, "mode": "constant", "truncate": 40.0}
    return gaussian_filter(channel, **kind) / gaussian_filter(np.ones_like(channel), **kind)


def outside_blurred(batch: Batch, i: int, sigma: float) -> NDArray[np.float64]:
    s = batch.saliency[i, 0].numpy()
    return np.stack([s * channel + (1 - s) * blurred(channel, sigma) for channel in batch.image[i].numpy()])


def method(model: nn.Module, **options: Any) -> tuple[BlurAugmentation, list[torch.Tensor]]:
    """Return a method, and a list that the images which its network is given are added to."""
    given: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, images, __: given.append(images[0]))
    return BlurAugmentation(Tapped(model), BlurAugmentationOptions(**options)), given


def test_each_image_has_its_own_blur() -> None:
    images = torch.randn(4, 3, 12, 17, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.6, 3.0, 25.0], dtype=torch.float64)
    found = blur_each(images, sigma)
    for i, channels in enumerate(images.numpy()):
        expected = np.stack([blurred(channel, float(sigma[i])) for channel in channels])
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(found[0], images[0])


def test_the_loss_is_cross_entropy_on_images_blurred_outside_their_map() -> None:
    model, batch = network(norm=False), make_batch(6, maps=4)
    blur, given = method(model, levels=(3,))
    parts = blur(batch)
    for i in range(6):
        expected = outside_blurred(batch, i, 3.0 if i < 4 else 0.0)
        np.testing.assert_allclose(given[0][i].numpy(), expected, rtol=0, atol=1e-6)
    losses = [
        transcription.xent(y, label) for y, label in zip(model(given[0]).tolist(), batch.label.tolist(), strict=True)
    ]
    assert float(parts["total"]) == pytest.approx(sum(losses) / 6)
    assert float(parts["sigma"]) == 3


def test_levels_are_drawn_for_each_sample_and_level_0_is_the_image_itself() -> None:
    torch.manual_seed(0)
    batch = make_batch(6, maps=5)
    blur, given = method(network(norm=False), levels=(0, 1.5, 6))
    candidates = [[outside_blurred(batch, i, level) for level in (0, 1.5, 6)] for i in range(5)]
    drawn: Counter[int] = Counter()
    patterns = set()
    for _ in range(24):
        mean = float(blur(batch)["sigma"])
        images = given[-1].numpy()
        assert np.array_equal(images[5], batch.image[5].numpy())
        own = tuple(int(np.argmin([np.abs(images[i] - c).max() for c in candidates[i]])) for i in range(5))
        assert all(np.abs(images[i] - candidates[i][own[i]]).max() < 1e-6 for i in range(5))
        assert all(np.array_equal(images[i], batch.image[i].numpy()) for i in range(5) if own[i] == 0)
        assert mean == pytest.approx(sum((0, 1.5, 6)[level] for level in own) / 5)
        drawn.update(own)
        patterns.add(own)
    assert min(drawn[level] for level in range(3)) > 20  # 40 expected
    assert len(patterns) > 15


def test_expanded_every_level_of_every_sample_is_in_the_loss() -> None:
    model, batch = network(norm=False), make_batch(5, maps=3)
    blur, given = method(model, levels=(2, 0, 5), mode="expand")
    parts = blur(batch)
    assert [len(images) for images in given] == [5 + 3 * 2]
    losses = []
    for i in range(5):
        copies = [outside_blurred(batch, i, level) for level in ((2, 0, 5) if i < 3 else (0,))]
        logits = model(torch.from_numpy(np.stack(copies))).tolist()
        losses.append(np.mean([transcription.xent(y, int(batch.label[i])) for y in logits]))
    assert float(parts["total"]) == pytest.approx(np.mean(losses), abs=1e-6)
    assert float(parts["sigma"]) == pytest.approx(7 / 3)
    nobody, given = method(network(norm=False), mode="expand")
    assert float(nobody(make_batch(5, maps=0))["sigma"]) == 0
    assert [len(images) for images in given] == [5]


def test_levels_are_checked() -> None:
    assert BlurAugmentationOptions().levels == (0, 2, 4, 6, 8, 10, 12, 14, 16)
    for levels in ((), (-1,), (2, 201), (float("nan"),)):
        with pytest.raises(ValidationError, match="levels"):
            BlurAugmentationOptions(levels=levels)
