from __future__ import annotations

import base64
import io
import json
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imsave
from PIL import Image
from scipy.ndimage import gaussian_filter

from lookhere.data.cache import load_dataset
from lookhere.data.check import Summary, check, inspect
from lookhere.data.colour_maps import MONOTONE, OTHERS
from lookhere.data.decode import decode_map
from lookhere.data.findings import Finding
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.data.sheet import SIDE, STRENGTH, TINT, write_sheet
from lookhere.errors import DataError

SIZE = 32
SPLITS = ["train"] * 8 + ["val"] * 4 + ["test"] * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 images of noise of two classes, each with a soft spot as map, and with types and groups."""
    draw = np.random.default_rng(0)
    rows = []
    for i, split in enumerate(SPLITS):
        Image.fromarray(draw.integers(0, 256, (48, 48), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(spot(draw)).save(tmp_path / f"map{i}.png")
        attack = i % 2
        rows.append(f"{i}.png,{['real', 'attack'][attack]},{split},map{i}.png,{'print' if attack else ''},eye{i // 4}")
    write(tmp_path, rows)
    return tmp_path


def spot(draw: np.random.Generator) -> np.ndarray:
    y, x = draw.integers(14, 34, 2)
    down, across = np.mgrid[:48, :48]
    return np.rint(255 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / 50)).astype(np.uint8)


def write(folder: Path, rows: list[str]) -> None:
    (folder / "manifest.csv").write_text("\n".join(["image,label,split,saliency,type,group", *rows]) + "\n")


def read(folder: Path) -> list[str]:
    return (folder / "manifest.csv").read_text().splitlines()[1:]


def options(folder: Path, **others: object) -> DataOptions:
    return DataOptions(manifest=folder / "manifest.csv", cache=folder / "cache", **{"size": SIZE, **others})


def look(folder: Path, **others: object) -> Summary:
    return inspect(options(folder, **others), SaliencyOptions())[1]


def found(summary: Summary, name: str) -> Finding:
    return next(finding for finding in summary.findings if finding.name == name)


def test_a_sound_set_is_ready(folder: Path) -> None:
    summary = look(folder)
    # Maps of 48 x 48 for images of 48 x 48, spots away from the edges, eyes 0 to 3 of four images each.
    assert [finding.name for finding in summary.findings] == []
    assert summary.verdict == "ready for training"
    assert [tuple(count) for count in summary.counts] == [
        ("train", "attack", "print", 4, 4),
        ("train", "real", "", 4, 4),
        ("val", "attack", "print", 2, 2),
        ("val", "real", "", 2, 2),
        ("test", "attack", "print", 2, 2),
        ("test", "real", "", 2, 2),
    ]
    assert summary.groups == [2, 2, 1, 1, 1, 1]
    assert summary.lines()[0].split() == ["split", "label", "type", "images", "maps", "groups"]
    assert summary.lines()[-1] == "verdict: ready for training"


def test_json_holds_everything(folder: Path) -> None:
    Image.new("L", (48, 48)).save(folder / "map3.png")
    summary = look(folder)
    report = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert report["ready"] is True
    assert sum(count["images"] for count in report["counts"]) == report["images"] == 16
    assert report["counts"][0] == {
        "split": "train",
        "label": "attack",
        "type": "print",
        "images": 4,
        "maps": 4,
        "groups": 2,
    }
    (constant,) = report["findings"]
    assert constant["severity"] == "warning"
    assert constant["examples"] == [{"images": ["3.png"], "reason": "all zero: nothing is marked"}]


def test_case_22_constant_maps(folder: Path) -> None:
    for i, value in enumerate((0, 255, 102)):
        Image.new("L", (48, 48), value).save(folder / f"map{i}.png")
    summary = look(folder)
    reasons = ["all zero: nothing is marked", "one value throughout (1.00)", "one value throughout (0.40)"]
    assert found(summary, "constant maps").examples == tuple(((i,), reason) for i, reason in enumerate(reasons))
    assert summary.constant_maps == 3
    assert "inverted maps" not in {finding.name for finding in summary.findings}


@pytest.mark.parametrize("kind", ["spots", "lungs"])
def test_case_25_inverted_maps(folder: Path, kind: str) -> None:
    """Large salient areas, such as both lungs, do not reach 80 % coverage inverted, but touch every edge."""
    for i in range(16):
        drawn = np.asarray(Image.open(folder / f"map{i}.png")) if kind == "spots" else np.zeros((48, 48), np.uint8)
        drawn = drawn.copy()
        if kind == "lungs":
            drawn[8:42, 6:21] = drawn[8:42, 27:42] = 255
        Image.fromarray(drawn).save(folder / f"map{i}.png")
    assert not look(folder).findings
    Image.fromarray(255 - drawn).save(folder / "map15.png")
    alone = found(look(folder), "inverted maps")
    assert alone.examples[0].rows == (15,)
    assert "1 map unlike the others" in alone.text
    for i in range(15):
        Image.fromarray(255 - np.asarray(Image.open(folder / f"map{i}.png"))).save(folder / f"map{i}.png")
    assert "16 of 16 maps cover most of their image" in found(look(folder), "inverted maps").text


def test_case_21_missing_maps(folder: Path) -> None:
    rows = read(folder)
    some = [row.replace(f"map{i}.png", "") if i % 2 == 0 else row for i, row in enumerate(rows)]
    write(folder, some)
    missing = found(look(folder), "missing maps")
    assert missing.severity == "note"
    assert missing.text == "4 of 8 train images without a map, among them all of real: guidance skips them"
    write(folder, [re.sub(r"map\d+.png", "", row) for row in rows])
    assert found(look(folder), "missing maps").severity == "warning"


def test_case_23_sizes(folder: Path) -> None:
    Image.new("L", (96, 96)).save(folder / "map1.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 9).save(folder / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.linear_gradient("L").resize((40, 20))
    turned.save(folder / "3.png", exif=exif)
    turned.rotate(-90, expand=True).save(folder / "map3.png")
    summary = look(folder)
    assert found(summary, "maps of another size").examples == (
        ((1,), "map 96 x 96, image 48 x 48"),
        ((2,), "map 48 x 48, image 5 x 5"),
    )
    assert found(summary, "tiny images").examples == (((2,), "map 48 x 48, image 5 x 5"),)
    enlarged = found(look(folder, size=64), "enlarged images").text
    assert enlarged == "16 of 16 images enlarged to data.size = 64: the usual one has 48 pixels a side"
    Image.new("L", (96, 48)).save(folder / "map4.png")
    with pytest.raises(DataError, match=r"row 6, column saliency: 'map4.png': 96 x 48, but the image '4.png' is 48 x"):
        look(folder)


def test_lists_of_tests_are_checked_too(folder: Path) -> None:
    rows = [row for row in read(folder) if ",test," in row and ",real," in row]
    write(folder, rows)
    summary = check(options(folder), SaliencyOptions())
    assert summary.verdict == "ready for evaluation, not for training: no train rows"
    with pytest.raises(DataError, match="no train rows"):
        check(options(folder), SaliencyOptions(), training=True)
    # A set with train rows is checked for training: here it lacks a class.
    write(folder, [*rows, rows[0].replace("test", "train")])
    with pytest.raises(DataError, match="one class in train"):
        check(options(folder), SaliencyOptions())


class Page(HTMLParser):
    """The links, pictures and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def sheet(folder: Path, seed: int = 0) -> Page:
    dataset, summary = inspect(options(folder), SaliencyOptions())
    return Page(write_sheet(folder / "sheet.html", dataset, summary, seed=seed).read_text("utf-8"))


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), np.float64)


def test_the_sheet_needs_nothing_else_and_names_are_text(folder: Path) -> None:
    """Case 55: a file name that is markup."""
    name = '"><script>alert(1)<script>.png'
    (folder / "0.png").rename(folder / name)
    Image.new("L", (48, 48)).save(folder / "map0.png")
    rows = read(folder)
    quoted = name.replace('"', '""')
    write(folder, [rows[0].replace("0.png", f'"{quoted}"', 1).replace("real", "real"), *rows[1:]])
    page = sheet(folder)
    assert "script" not in page.tags
    assert len(page.links) == 16 + 1  # every image, and the constant map's again
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert name in page.text
    assert "all zero: nothing is marked" in page.text
    assert max(max(picture(link).shape) for link in page.links) <= SIDE == 160


def test_the_sheet_is_drawn_by_its_seed(folder: Path) -> None:
    def ids(seed: int) -> list[str]:
        dataset, summary = inspect(options(folder), SaliencyOptions())
        html = write_sheet(folder / "sheet.html", dataset, summary, seed=seed, drawn=6).read_text("utf-8")
        return re.findall(r"<b>(.*?)</b>", html)

    assert ids(0) == ids(0)
    assert len({tuple(ids(seed)) for seed in range(5)}) > 1
    # Six pictures, of six kinds of split and class.
    assert sorted(SPLITS[int(name.split(".")[0])] for name in ids(1)) == ["test"] * 2 + ["train"] * 2 + ["val"] * 2


def test_the_sheet_tints_what_is_salient(folder: Path) -> None:
    Image.new("L", (48, 48), 100).save(folder / "0.png")
    half = np.zeros((48, 48), np.uint8)
    half[:, :24] = 255
    Image.fromarray(half).save(folder / "map0.png")
    html = sheet(folder)
    shown = next(p for p in map(picture, html.links) if abs(p[:, -8:] - 100).max() <= 3)
    np.testing.assert_allclose(shown[4:-4, 4:8].mean((0, 1)), 100 + STRENGTH * (TINT - 100), atol=4)


def heat(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = np.zeros((128, 128))
    values[tuple(draw.integers(16, 112, (2, 5)))] = 1
    values = gaussian_filter(values, 14)
    return (values - values.min()) / np.ptp(values)


def grey(name: str) -> np.ndarray:
    """The brightness (ITU-R BT.601) along a colour map."""
    return colormaps[name](np.linspace(0, 1, 256))[:, :3] @ (0.299, 0.587, 0.114)


def test_only_monotone_colour_maps_are_read_back() -> None:
    for name in MONOTONE:
        steps = np.diff(grey(name))
        assert min(steps.max(), -steps.min()) < 0.002, name
    for name in OTHERS:
        steps = np.diff(grey(name))
        assert min(steps.max(), -steps.min()) > 0.002, name


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_case_24_monotone_colour_maps_are_inverted_on_request(tmp_path: Path, name: str, extension: str) -> None:
    path = tmp_path / f"heat.{extension}"
    imsave(path, heat(), cmap=name)
    with pytest.raises(DataError, match=rf'coloured heat map \({name}\).*saliency.colour_map = "invert"'):
        decode_map(path, 64)
    values, state = decode_map(path, 128, "none", "invert")
    assert state == "ok"
    error = abs(values / 255 - heat())
    # 256 colours for the values, some of them equal; JPEG blurs the colours of neighbours.
    assert error.max() < 0.01 if extension == "png" else error.mean() < 0.02


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_case_24_other_colour_maps_are_refused(tmp_path: Path, name: str, extension: str) -> None:
    path = tmp_path / f"heat.{extension}"
    imsave(path, heat(), cmap=name)
    for asked in ("refuse", "invert"):
        with pytest.raises(DataError, match=rf"coloured heat map \({name}\), whose colours cannot be read back"):
            decode_map(path, 64, colour_map=asked)


def test_case_24_what_is_no_heat_map_is_refused(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (128, 128, 1)) * np.array([1.0, 0.9, 0.8])
    drawn = colormaps["jet"](heat(), bytes=True)[..., :3]
    red = np.full((128, 128, 3), 255.0)
    red[20:40, 20:40, 1:] = 0  # two colours of "hot", and no heat map
    for pixels in (photograph, 0.5 * photograph + 0.5 * drawn, red):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "map.png")
        with pytest.raises(DataError, match="colours of no known colour map"):
            decode_map(tmp_path / "map.png", 64, colour_map="invert")


@pytest.mark.parametrize("values", [np.zeros((64, 64)), np.tri(64)])
def test_case_24_blank_and_binary_heat_maps(tmp_path: Path, values: np.ndarray) -> None:
    imsave(tmp_path / "map.png", values, cmap="viridis", vmin=0, vmax=1)
    read_back, state = decode_map(tmp_path / "map.png", 64, "none", "invert")
    np.testing.assert_array_equal(read_back, values * 255)
    assert state == ("ok" if values.any() else "constant")


def test_case_24_in_a_set(folder: Path) -> None:
    imsave(folder / "map4.png", np.asarray(Image.open(folder / "map4.png")), cmap="viridis")
    before = load_dataset(options(folder), SaliencyOptions(colour_map="invert"))
    with pytest.raises(DataError, match=r"row 6, column saliency: 'map4.png': a coloured heat map \(viridis\)"):
        look(folder)
    Image.fromarray(decode_map(folder / "map4.png", 48, "none", "invert")[0]).save(folder / "map4.png")
    after = load_dataset(options(folder), SaliencyOptions())
    np.testing.assert_allclose(before.maps[4].astype(int), after.maps[4], atol=1)


@pytest.mark.soak
def test_a_million_rows_are_read_in_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    """What check does before decoding, in a process of its own."""
    count = 1_000_000
    for i in range(100):
        (tmp_path / f"{i}").mkdir()
    with open(tmp_path / "manifest.csv", "w") as file:
        file.write("image,label,split,saliency,type,group,weight\n")
        for i in range(count):
            image = f"{i % 100}/{i}.png"
            (tmp_path / image).touch()
            split = ("train", "train", "val", "test")[i % 4]
            file.write(f"{image},{'ab'[i // 4 % 2]},{split},,kind {i % 7},group {i // 10 * 4 + i % 4},1.5\n")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from lookhere.data.check import _has_train_rows\n"
        "from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest\n"
        "start = time.monotonic(); data = DataOptions(manifest=Path(sys.argv[1]))\n"
        "manifest = read_manifest(data, SaliencyOptions(), training=_has_train_rows(data))\n"
        "manifest.counts(); print(len(manifest), time.monotonic() - start)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "manifest.csv")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows, seconds = result.stdout.split()
    assert int(rows) == count
    assert float(seconds) < 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak > before, "an earlier child took more memory: run this test alone"
    assert peak / 1e6 < 2
