from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookhere.data.decode import channels, decode_image, decode_map
from lookhere.errors import DataError

SIZE = 32
ORIENTATION = 0x0112


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


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGBA", "LA", "opaque palette"])
def test_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    colours = Image.new("RGB", (SIZE, SIZE), (255, 0, 0))
    colours.paste((0, 0, 0), (0, 0, 16, 16))
    source = colours.quantize(4) if mode == "opaque palette" else colours.convert(mode)
    path = save(tmp_path / "a.tif", source)
    expected = np.asarray(source.convert("RGB" if mode not in ("1", "LA") else "L"))
    decoded = decode_image(path, SIZE)
    assert channels(path) == len(decoded)
    np.testing.assert_array_equal(decoded.transpose(1, 2, 0).squeeze(), expected)


@pytest.mark.parametrize(("name", "bits"), [("a.png", 16), ("a.tif", 16), ("a.png", 12)])
def test_sixteen_bits_are_not_clipped(tmp_path: Path, name: str, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    path = save(tmp_path / name, ramp)
    expected = np.rint(ramp.astype(np.float64) / (2**bits - 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(path, SIZE, bits)[0], expected)
    assert len(np.unique(expected)) == 256
    with pytest.raises(DataError, match=rf"values from 0 to {2**bits - 1}; expected 0 to {2 ** (bits - 1) - 1} "):
        decode_image(path, SIZE, bits - 1)


def test_big_endian_and_32_bit_integers(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE)
    expected = np.rint(ramp.astype(np.uint16) / 257.0).astype(np.uint8)
    big = Image.frombytes("I;16B", (SIZE, SIZE), ramp.astype(">u2").tobytes())
    for name, image in {"big.tif": big, "integer.tif": Image.fromarray(ramp.astype(np.int32))}.items():
        np.testing.assert_array_equal(decode_image(save(tmp_path / name, image), SIZE)[0], expected)
    with pytest.raises(DataError, match="values from -1 to 0"):
        decode_image(save(tmp_path / "negative.tif", Image.fromarray(-np.eye(SIZE, dtype=np.int32))), SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])  # the TIFF is uncompressed: see the comment in decode.py
def test_orientation_turns_image_and_map_alike(tmp_path: Path, orientation: int, extension: str) -> None:
    """A mark is at the upper right as people see the picture, however the camera was held."""
    seen = np.zeros((40, 64), np.uint8)
    seen[4:12, 48:60] = 255
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.T,
        6: np.rot90(seen),
        7: seen[::-1, ::-1].T,
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f"turned.{extension}", np.ascontiguousarray(stored), exif=exif)
    upright = decode_image(save(tmp_path / f"upright.{extension}", seen), SIZE)[0]
    np.testing.assert_allclose(decode_image(path, SIZE)[0].astype(int), upright, atol=40 if extension == "jpg" else 0)
    saliency, _ = decode_map(path, SIZE)
    rows, columns = np.nonzero(saliency > 128)
    assert rows.max() < SIZE * 0.35
    assert columns.min() > SIZE * 0.7


def damaged(path: Path, pixels: np.ndarray, part: float) -> Path:
    whole = save(path, pixels).read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    return path


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    html = tmp_path / "page.png"
    html.write_text("<html>not found</html>")
    empty = tmp_path / "empty.png"
    empty.touch()
    foreign = save(tmp_path / "gif.png", noise(9, 9), format="GIF")
    pickle = tmp_path / "array.png"
    np.save(tmp_path / "array", np.array([{}], object), allow_pickle=True)
    (tmp_path / "array.npy").rename(pickle)
    transparent = Image.new("RGBA", (9, 9), (1, 2, 3, 200))
    pages = tmp_path / "pages.tif"
    Image.new("L", (9, 9)).save(pages, save_all=True, append_images=[Image.new("L", (9, 9))])
    cases = {
        damaged(tmp_path / "half.jpg", noise(64, 64, 3), 0.5): "truncated",
        damaged(tmp_path / "half.png", noise(64, 64), 0.5): "truncated",
        damaged(tmp_path / "half.tif", noise(64, 64), 0.5): "cannot be decoded",
        damaged(tmp_path / "half.bmp", noise(64, 64), 0.5): "truncated",
        html: "not a readable image; expected PNG, JPEG, TIFF, BMP",
        foreign: "not a readable image",
        pickle: "not a readable image",
        empty: "empty (0 bytes)",
        tmp_path / "gone.png": "No such file",
        tmp_path: "Is a directory",
        pages: "2 pages",
        save(tmp_path / "float.tif", noise(9, 9).astype(np.float32)): "floating-point",
        save(tmp_path / "transparent.png", transparent): "transparent pixels",
    }
    for path, reason in cases.items():
        for decode in (decode_image, decode_map):
            with pytest.raises(DataError) as caught:
                decode(path, SIZE)
            assert reason in str(caught.value), (path.name, str(caught.value))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [5000, 2000])
def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Pillow warns up to twice its limit, and only then fails."""
    path = save(tmp_path / "a.png", noise(80, 80))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"6400 pixels.*limit of 4000|80 x 80 pixels.*limit is 5,000"):
        decode_image(path, SIZE)


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


def test_coloured_maps_are_refused(tmp_path: Path) -> None:
    heat = save(tmp_path / "heat.png", noise(20, 20, 3))
    with pytest.raises(DataError, match="coloured heat map"):
        decode_map(heat, SIZE)
