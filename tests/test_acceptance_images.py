"""Images and maps that are wrong. ``case_N`` is case N of the project's list of acceptance cases (16 to 30 here).

Cases 19 and 23 to 30 are mostly beside what they are about: DICOM, check, and the importers.
"""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from scipy.ndimage import gaussian_filter

from annotation_project import Project, coco_json
from lookhere import SAGE
from lookhere.cli import main
from lookhere.data.batches import Batches
from lookhere.data.cache import load_dataset
from lookhere.data.decode import channels, decode_image, decode_map, read
from lookhere.data.importers import coco
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.errors import DataError
from lookhere.views import saliency_views
from manifest_files import HEADER, Rows, make_rows, write

SIZE = 32
ORIENTATION = 0x0112
ROW = 5  # of attack3.png and map3.png, as an editor counts
NAMES = {"image": "attack3", "saliency": "map3"}
Verb = Callable[..., tuple[int, str, str]]
Place = Callable[[str], tuple[Path, str]]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return make_rows(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verb:
    """A verb of the command line on the manifest in ``tmp_path``: exit code, output, errors."""

    def call(verb: str, *arguments: str, size: int = SIZE) -> tuple[int, str, str]:
        path = str(tmp_path / "manifest.csv")
        given = ["train", "--weights", "random", "--data", path] if verb == "train" else [verb, path]
        code = main([*given, "--set", f"data.size={size}", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture(params=["image", "saliency"])
def place(request: pytest.FixtureRequest, rows: Rows, tmp_path: Path) -> Place:
    """Puts a file of some extension into the manifest, as an image and as a map: its path, and how a message starts."""

    def name(extension: str) -> tuple[Path, str]:
        column = request.param
        file = f"{NAMES[column]}{extension}"
        rows[ROW - 2][HEADER.index(column)] = file
        return tmp_path / file, f"{write(tmp_path, rows)}, row {ROW}, column {column}: '{file}': "

    return name


def refused(run: Verb, start: str, *parts: str) -> None:
    """Assert that check names one file, and why it is refused."""
    code, out, err = run("check", "--json")
    assert code == 3
    (message,) = json.loads(out)["errors"]
    assert message in err
    assert message.startswith(start), message
    assert all(part in message for part in parts), message


def soft(side: int = 96) -> np.ndarray:
    """Return a coloured picture that compresses, so that files have a middle to be cut in."""
    drawn = gaussian_filter(np.random.default_rng(0).normal(size=(side, side, 3)), (3, 3, 0))
    return np.rint(np.interp(drawn, (drawn.min(), drawn.max()), (0, 255))).astype(np.uint8)


KINDS = [
    (".jpg", {}),
    (".jpg", {"progressive": True}),
    (".png", {}),
    (".tif", {}),
    (".tif", {"compression": "tiff_lzw"}),
    (".tif", {"compression": "jpeg"}),
    (".bmp", {}),
]


@pytest.mark.parametrize(("extension", "options"), [KINDS[0], KINDS[2], KINDS[3]])
@pytest.mark.parametrize("verb", ["check", "train"])
def test_case_16_truncated_files(run: Verb, place: Place, verb: str, extension: str, options: dict[str, Any]) -> None:
    path, start = place(extension)
    whole = save(path, soft()[..., 0], **options).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if extension == ".jpg":
        Image.open(path).verify()  # sees nothing
    code, _, err = run(verb)
    assert code == 3
    assert f"{start}cannot be decoded" in err


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the tags of a cut TIFF
@pytest.mark.parametrize(("extension", "options"), KINDS)
def test_case_16_no_cut_gives_other_pixels(tmp_path: Path, extension: str, options: dict[str, Any]) -> None:
    path = save(tmp_path / f"a{extension}", soft(), **options)
    whole, pixels = path.read_bytes(), np.asarray(read(path))
    errors = 0
    for length in [*range(0, len(whole), max(len(whole) // 40, 1)), *range(len(whole) - 16, len(whole))]:
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read(path), pixels)  # a PNG without its last mark has all of its pixels
        except DataError:
            errors += 1
    assert errors > 40
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def bomb(path: Path, width: int, height: int) -> None:
    """Write a black PNG of one bit per pixel, small in the file and large in memory."""
    packed = zlib.compressobj(1)
    line = b"\0" * (1 + (width + 7) // 8)
    data = b"".join(packed.compress(line) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((20_000, 10_000), ["200000000 pixels", "limit of 178956970 pixels"]),
        ((10_000, 9_000), ["90000000 pixels", "limit of 89478485 pixels"]),  # where Pillow only warns
        ((80_000, 1), ["80000 x 1 pixels", "the limit is 65,535 pixels a side"]),
        ((1, 80_000), ["1 x 80000 pixels", "the limit is 65,535 pixels a side"]),
    ],
)
def test_case_17_too_large(run: Verb, place: Place, size: tuple[int, int], parts: list[str]) -> None:
    path, start = place(".png")
    bomb(path, *size)
    assert path.stat().st_size < 2**18
    refused(run, start, *parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_case_17_outside_of_check(tmp_path: Path) -> None:
    bomb(tmp_path / "a.png", 10_000, 9_000)
    with pytest.raises(DataError, match="10000 x 9000 pixels; the limit is 89,478,485 pixels in all"):
        decode_image(tmp_path / "a.png", SIZE)


def test_case_17_one_pixel(run: Verb, rows: Rows, tmp_path: Path) -> None:
    Image.new("L", (1, 1), 7).save(tmp_path / "attack3.png")
    write(tmp_path, rows)
    code, out, _ = run("check")
    assert code == 0
    assert "warning: tiny images: 1 image of fewer than 16 pixels a side" in out
    assert "attack3.png: map 20 x 20, image 1 x 1" in out


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "CMYK JPEG", "RGBA", "LA", "opaque palette"])
def test_case_18_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    colours = Image.new("RGB", (SIZE, SIZE), (255, 0, 0))
    colours.paste((0, 0, 0), (0, 0, 16, 16))
    source = colours.quantize(4) if mode == "opaque palette" else colours.convert(mode.split()[0])
    path = save(tmp_path / f"a.{'jpg' if 'JPEG' in mode else 'tif'}", source)
    expected = np.asarray(source.convert("RGB" if mode not in ("1", "LA") else "L"))
    decoded = decode_image(path, SIZE)
    assert channels(path) == len(decoded)
    close = 3 if "JPEG" in mode else 0
    np.testing.assert_allclose(decoded.transpose(1, 2, 0).squeeze().astype(int), expected, atol=close)


@pytest.mark.parametrize(("name", "bits"), [("a.png", 16), ("a.tif", 16), ("a.png", 12)])
def test_case_18_sixteen_bits_are_not_clipped(tmp_path: Path, name: str, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    path = save(tmp_path / name, ramp)
    expected = np.rint(ramp.astype(np.float64) / (2**bits - 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(path, SIZE, bits)[0], expected)
    assert len(np.unique(expected)) == 256
    with pytest.raises(DataError, match=rf"values from 0 to {2**bits - 1}; expected 0 to {2 ** (bits - 1) - 1} "):
        decode_image(path, SIZE, bits - 1)


def test_case_18_big_endian_and_32_bit_integers(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE)
    expected = np.rint(ramp.astype(np.uint16) / 257.0).astype(np.uint8)
    big = Image.frombytes("I;16B", (SIZE, SIZE), ramp.astype(">u2").tobytes())
    for name, image in {"big.tif": big, "integer.tif": Image.fromarray(ramp.astype(np.int32))}.items():
        np.testing.assert_array_equal(decode_image(save(tmp_path / name, image), SIZE)[0], expected)
    with pytest.raises(DataError, match="values from -1 to 0"):
        decode_image(save(tmp_path / "negative.tif", Image.fromarray(-np.eye(SIZE, dtype=np.int32))), SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])  # the TIFF is uncompressed: see the comment in decode.py
def test_case_18_orientation_turns_image_and_map_alike(tmp_path: Path, orientation: int, extension: str) -> None:
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


@pytest.mark.parametrize("kind", ["floating-point pixels", "2 pages", "transparent pixels"])
def test_case_18_what_cannot_be_read_faithfully_is_refused(run: Verb, place: Place, kind: str) -> None:
    path, start = place(".tif")
    if kind == "2 pages":
        Image.new("L", (20, 20)).save(path, save_all=True, append_images=[Image.new("L", (20, 20))])
    elif kind == "transparent pixels":
        save(path, Image.new("RGBA", (20, 20), (1, 2, 3, 200)))
    else:
        save(path, noise(20, 20).astype(np.float32))
    refused(run, start, kind)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def foreign(tmp_path: Path) -> dict[str, bytes]:
    np.save(tmp_path / "array.npy", np.array([Canary(tmp_path / "sung")], object), allow_pickle=True)
    save(tmp_path / "a.gif", noise(20, 20))
    save(tmp_path / "a.webp", noise(20, 20))
    card = b"".join(b"%-80s" % text for text in (b"SIMPLE  = T", b"BITPIX  = 8", b"NAXIS   = 2", b"END"))
    return {
        "psd": struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 20, 20, 8, 1) + b"\0" * 12 + b"\0\0" + b"\7" * 400,
        "fits": card.ljust(2880) + b"\0" * 2880,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><rect width="9" height="9"/></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n",
        "npy": (tmp_path / "array.npy").read_bytes(),
        "pkl": pickle.dumps(Canary(tmp_path / "sung")),
        "gif": (tmp_path / "a.gif").read_bytes(),
        "webp": (tmp_path / "a.webp").read_bytes(),
        "dcm": b"\0" * 128 + b"DICM" + b"\0" * 400,
    }


@pytest.mark.parametrize("kind", ["psd", "fits", "svg", "eps", "npy", "pkl", "gif", "webp", "dcm"])
@pytest.mark.parametrize("disguised", [False, True])
def test_case_20_other_formats_are_refused(run: Verb, place: Place, tmp_path: Path, kind: str, disguised: bool) -> None:
    path, start = place(".png" if disguised else f".{kind}")
    path.write_bytes(foreign(tmp_path)[kind])
    refused(run, start, "not a readable image; expected PNG, JPEG, TIFF, BMP")
    assert not (tmp_path / "sung").exists()


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(6, 2))


@pytest.mark.filterwarnings("ignore:a blur with kernel 7")
def test_case_21_batches_with_and_without_maps(run: Verb, rows: Rows, tmp_path: Path) -> None:
    for row in rows[:6:3]:
        row[3] = ""
    path = write(tmp_path, rows)
    code, out, _ = run("check")
    assert code == 0
    assert "2 of 6 train images without a map" in out
    data = load_dataset(DataOptions(manifest=path, size=SIZE), SaliencyOptions())
    (batch,) = Batches(data, data.manifest.rows("train"), batch_size=6, mean=(0.5,) * 3, std=(0.2,) * 3).epoch()
    assert batch.has_saliency.tolist() == [False, True, True] * 2
    model = network()
    loss = SAGE(model)(batch.image, batch.saliency, batch.label, batch.has_saliency)
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())
    for row in rows[:6]:
        row[3] = ""
    write(tmp_path, rows)
    code, out, _ = run("check")
    assert (code, "no train image has a map, so nothing guides a training" in out) == (0, True)
    assert run("check", "--strict")[0] == 3


@pytest.mark.filterwarnings("ignore:a blur with kernel 7")
@pytest.mark.parametrize("value", [0, 102, 255])
def test_case_22_constant_maps(run: Verb, rows: Rows, tmp_path: Path, value: int) -> None:
    """They are listed and guide nothing; given to the loss itself, nothing salient is a wholly blurred image."""
    for i in range(12):
        Image.new("L", (20, 20), value).save(tmp_path / f"map{i}.png")
    path = write(tmp_path, rows)
    code, out, _ = run("check")
    assert code == 0
    assert "12 images, 0 without a map, 12 constant maps" in out
    assert "warning: constant maps: 12 maps with one value throughout, which guide nothing" in out
    assert f"real0.png: {'one value throughout' if value else 'all zero: nothing is marked'}" in out
    data = load_dataset(DataOptions(manifest=path, size=SIZE), SaliencyOptions())
    (batch,) = Batches(data, data.manifest.rows("train"), batch_size=6, mean=(0.5,) * 3, std=(0.2,) * 3).epoch()
    assert not batch.has_saliency.any()
    torch.testing.assert_close(batch.saliency, torch.full_like(batch.saliency, value / 255))
    views = saliency_views(batch.image, batch.saliency)
    if value == 0:
        torch.testing.assert_close(views.kept, views.degraded)
        torch.testing.assert_close(views.removed, views.clean)
    for has_saliency in (batch.has_saliency, None):
        model = network()
        loss = SAGE(model)(batch.image, batch.saliency, batch.label, has_saliency)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_case_25_coverage_is_printed_and_polarity_named(run: Verb, rows: Rows, tmp_path: Path) -> None:
    for i in range(12):
        pixels = np.full((20, 20), 255, np.uint8)
        pixels[8:11, 8 : 9 + i % 3] = 0
        save(tmp_path / f"map{i}.png", pixels)
    write(tmp_path, rows)
    code, out, _ = run("check", size=20)
    assert code == 0
    assert f"mean coverage {1 - 6 / 400:.1%}" in out
    assert "warning: inverted maps: 12 of 12 maps cover most of their image" in out
    assert "is their polarity inverted?" in out


def test_case_29_a_mask_of_ten_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    project = Project(tmp_path, coco)
    path = project.write(coco_json([{"size": [10**5, 10**5], "counts": [10**10]}]))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="annotation 50: mask: size is"):
            project.maps(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
