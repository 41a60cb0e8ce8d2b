from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookhere.data.decode import channels, decode_image, decode_map

SIZE = 32


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3), (20, 12), (20, 12, 3)])
def test_resize_is_pillows(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / name, noise(*shape))
    expected = np.asarray(Image.fromarray(noise(*shape)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    decoded = decode_image(path, SIZE)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (channels(path), SIZE, SIZE)
    np.testing.assert_array_equal(decoded, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))


def test_maps_are_stretched(tmp_path: Path) -> None:
    grey = np.linspace(50, 130, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8)
    for path in (
        save(tmp_path / "grey.png", grey),
        save(tmp_path / "equal_channels.png", np.repeat(grey[..., None], 3, 2)),
        save(tmp_path / "deep.png", grey.astype(np.uint16) * 257),
    ):
        stretched, state = decode_map(path, SIZE)
        assert state == "ok"
        np.testing.assert_array_equal(stretched, np.rint((grey - 50.0) * (255 / 80)))
        np.testing.assert_array_equal(decode_map(path, SIZE, "none")[0], grey)


@pytest.mark.parametrize("value", [0, 100, 255])
@pytest.mark.parametrize("size", [SIZE, 61])
def test_constant_maps_keep_their_value(tmp_path: Path, value: int, size: int) -> None:
    saliency, state = decode_map(save(tmp_path / "a.png", np.full((50, 50), value, np.uint8)), size)
    assert state == "constant"
    assert (saliency == value).all()
