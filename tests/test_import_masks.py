"""Masks of every mode. ``case_N`` is case N of the project's list of acceptance cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from lookhere.data.importers.base import Imported, import_dataset
from lookhere.data.importers.mask_folder import IMPORTERS, MaskFolderOptions
from lookhere.errors import DataError

W, H = 24, 16
SHAPE = np.zeros((H, W), bool)
SHAPE[3:9, 5:15] = True
SOFT = np.linspace(0, 1, W * H).reshape(H, W)


def _image(kind: str) -> Image.Image:
    """Return a mask of ``SHAPE`` or, in grey, of ``SOFT``."""
    white = np.where(SHAPE, 255, 0).astype(np.uint8)
    index = Image.fromarray(np.where(SHAPE, 2, 0).astype(np.uint8))
    transparent_white = np.full((H, W, 4), 255, np.uint8)
    transparent_white[..., 3] = np.where(SHAPE, 85, 0)
    match kind:
        case "L" | "LA opaque" | "RGB grey":
            mode = {"L": "L", "LA opaque": "LA", "RGB grey": "RGB"}[kind]
            return Image.fromarray(np.rint(SOFT * 255).astype(np.uint8)).convert(mode)
        case "I;16":
            return Image.fromarray(np.rint(SOFT * 65535).astype(np.uint16))
        case "12 bit":
            return Image.fromarray(np.rint(SOFT * 4095).astype(np.uint16))
        case "1":
            return Image.fromarray(white).convert("1")
        case "zeros and ones":
            return Image.fromarray(SHAPE.astype(np.uint8))
        case "zeros and twos":
            return index
        case "16-bit file of 8-bit values":
            return Image.fromarray(white.astype(np.uint16))
        case "palette, colours":
            image = index.convert("P")
            image.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0])
            return image
        case "palette, grey":
            image = index.convert("P")
            image.putpalette([0, 0, 0, 99, 99, 99, 255, 255, 255])
            return image
        case "viridis" | "viridis, palette":
            colours = Image.fromarray(colormaps["viridis"](SOFT, bytes=True)).convert("RGB")
            return colours if kind == "viridis" else colours.quantize(256)
        case "strokes":
            return Image.fromarray(transparent_white)
        case "strokes, grey":
            return Image.fromarray(transparent_white).convert("LA")
        case "RGB colours":
            return Image.fromarray(np.where(SHAPE[..., None], (255, 0, 0), (0, 0, 0)).astype(np.uint8))
    raise KeyError(kind)


def _import(tmp_path: Path, *masks: Path, out: str = "out", **options: Any) -> Imported:
    given = MaskFolderOptions(**{"images": tmp_path / "images", "map_bits": 16, **options})
    return import_dataset(IMPORTERS[0], masks or [tmp_path / "masks"], given, tmp_path / out)


def _map(tmp_path: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(tmp_path / "out/maps" / f"{name}.png")) / 65535


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Give two images of each class, and an empty folder of masks."""
    for kind in ("live", "attack"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (W, H), (i, 9, 9)).save(tmp_path / "images" / kind / f"{kind}{i}.png")
    (tmp_path / "masks").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("L", {}, SOFT),
        ("LA opaque", {}, SOFT),
        ("RGB grey", {}, SOFT),
        ("L", {"invert": True}, 1 - SOFT),
        ("I;16", {}, SOFT),
        ("12 bit", {"white": 4095}, SOFT),
        ("1", {}, SHAPE),
        ("zeros and ones", {}, SHAPE),
        ("zeros and twos", {"values": "index"}, SHAPE),
        ("zeros and twos", {"white": 2}, SHAPE),
        ("zeros and twos", {"values": "index", "only": (1,)}, 0 * SHAPE),
        ("16-bit file of 8-bit values", {"white": 255}, SHAPE),
        ("palette, colours", {}, SHAPE),
        ("palette, colours", {"only": (2,)}, SHAPE),
        ("palette, grey", {}, SHAPE),
        ("strokes", {}, SHAPE),
        ("strokes, grey", {}, SHAPE),
        ("RGB colours", {"values": "index"}, SHAPE),
        ("viridis", {"values": "colour-map"}, SOFT),
    ],
)
def test_every_mode_is_read_for_what_it_means(folders: Path, kind: str, options: Any, expected: np.ndarray) -> None:
    _image(kind).save(folders / "masks" / "live0.png")
    _import(folders, **options)
    np.testing.assert_allclose(
        _map(folders, "live/live0"), expected, atol=(1.6 if kind == "viridis" else 0.5) / 255 + 1e-6
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("zeros and twos", {}, "its brightest value is 2 of 255: numbers of classes, or a faint map?"),
        ("16-bit file of 8-bit values", {}, "its brightest value is 255 of 65535"),
        ("RGB colours", {}, "a coloured file"),
        ("viridis", {}, "a coloured file"),
        ("viridis, palette", {}, 'values = "colour-map" if it is a heat'),
        ("palette, colours", {"values": "intensity"}, "whose colours are no brightness"),
        ("L", {"values": "alpha"}, "without transparency"),
        ("L", {"white": 200}, "values from 0 to 255; expected 0 to 200"),
    ],
)
def test_what_cannot_be_told_is_asked_for(folders: Path, kind: str, options: Any, message: str) -> None:
    _image(kind).save(folders / "masks" / "live0.png")
    with pytest.raises(DataError) as error:
        _import(folders, **options)
    assert message in str(error.value)
    assert f"{folders}/masks/live0.png" in str(error.value)


def test_folders_are_annotators_and_what_was_read_is_told(folders: Path) -> None:
    (folders / "second").mkdir()
    _image("strokes").save(folders / "masks" / "live0.png")
    _image("L").save(folders / "second" / "live0.png")
    _image("L").save(folders / "second" / "nobody.png")
    imported = _import(folders, folders / "masks", folders / "second")
    np.testing.assert_allclose(_map(folders, "live/live0"), (SHAPE + SOFT) / 2, atol=0.01)
    assert imported.dropped["mask without an image of its name"]["count"] == 1
    assert imported.warnings == ["3 of 4 images without a map"]
    facts = json.loads((folders / "out/provenance.json").read_text())["facts"]
    assert facts["masks_read_as"] == {"strokes: alpha above 0": 1, "intensity: 255 is fully salient": 1}


def test_masks_may_lie_beside_their_images(folders: Path) -> None:
    for kind in ("live", "attack"):
        _image("L").save(folders / "images" / kind / f"{kind}0_mask.png")
    imported = _import(folders, folders / "images", suffix="_mask")
    assert sum(count.images for count in imported.counts) == 4
    assert sum(count.maps for count in imported.counts) == 2
    with pytest.raises(DataError, match="every image in it is a mask"):
        _import(folders, folders / "images", out="other")


def test_case_23_sizes(folders: Path) -> None:
    _image("1").resize((W * 4, H * 4)).save(folders / "masks" / "live0.png")
    _import(folders)
    np.testing.assert_array_equal(_map(folders, "live/live0") > 0.5, SHAPE)
    _image("L").resize((W, W)).save(folders / "masks" / "live1.png")
    with pytest.raises(DataError, match=r"live1.png: 24 x 24 pixels, the image 24 x 16; expected the same aspect"):
        _import(folders, out="other")


def test_case_26_a_mask_of_another_folder_is_not_taken(folders: Path) -> None:
    for kind in ("live", "attack"):
        (folders / "masks" / kind).mkdir()
        _image("L").save(folders / "masks" / kind / "live0.png")
    with pytest.raises(DataError, match=r"may both be 'live/live0\.png'"):
        _import(folders)
    for kind in ("live", "attack"):
        Image.new("RGB", (W, H)).save(folders / "images" / kind / "same.png")
        (folders / "masks" / kind / "live0.png").unlink()
    _image("L").save(folders / "masks" / "same.png")
    with pytest.raises(DataError, match=r"'same' may be 'attack/same\.png' and 'live/same\.png'"):
        _import(folders)


def test_no_mask_at_all_is_an_error(folders: Path) -> None:
    _image("L").save(folders / "masks" / "other.png")
    with pytest.raises(DataError, match="no mask has the name of an image"):
        _import(folders)
