from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave
from PIL import Image

from lookhere.data.check import check
from lookhere.data.importers.base import Imported, Importer, import_dataset
from lookhere.data.importers.dnetpad import IMPORTERS as DNETPAD
from lookhere.data.importers.faces import IMPORTERS as FACES
from lookhere.data.importers.livdet_iris import IMPORTERS as LIVDET
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.errors import DataError, UsageError

(dnetpad,), (cyborg,), (livdet,) = DNETPAD, FACES, LIVDET


def bring(importer: Importer, folder: Path, *paths: str, **options: object) -> Imported:
    """Import paths below ``folder`` into a new folder beside it."""
    out = folder.parent / f"out{len(list(folder.parent.iterdir()))}"
    given = {name: folder / value if name in FILES else value for name, value in options.items()}
    return import_dataset(importer, [folder / path for path in paths], importer.Options(**given), out)


FILES = ("maps", "root", "truth", "circles")
LISTS = ("train.csv", "sensor_a.csv", "printouts.csv")
TESTS = ("ffhq.csv", "celeba-hq.csv", "progan.csv", "stylegan2.csv")


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "source"
    request.param.example(folder)
    return folder


def rows(imported: Imported) -> dict[str, dict[str, str]]:
    with open(imported.manifest, newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def facts(imported: Imported) -> dict[str, object]:
    return json.loads((imported.manifest.parent / "provenance.json").read_text())["facts"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_dnetpad(example: Path) -> None:
    imported = bring(dnetpad, example, *LISTS, test_rows="val", maps="maps")
    found = rows(imported)
    assert len(found) == 32
    for i in range(12):
        row = found[f"images/crops/Spoof_{i}.png"]
        assert row["split"] == ("train" if i < 8 else "val")  # rows 8 to 11 are named test in the list
        saliency = pixels(imported.manifest.parent / row["saliency"])
        np.testing.assert_array_equal(saliency, pixels(example / "maps" / f"Spoof_{i}.png"))
    assert [found[f"images/{name}_0.png"]["type"] for name in ("sensor_a/Live", "printouts/Spoof")] == [
        "sensor_a",
        "printouts",
    ]
    check(DataOptions(manifest=imported.manifest, size=32, cache=example.parent / "cache"), SaliencyOptions())
    as_test = rows(bring(dnetpad, example, "train.csv", test_rows="test", maps="maps"))
    assert Counter(row["split"] for row in as_test.values()) == {"train": 16, "test": 8}


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_which_rows_are_validation_is_asked_for(example: Path) -> None:
    with pytest.raises(
        UsageError, match=r"test_rows: is required, because .*train.csv has 8 rows named test.*=val.*=test"
    ):
        bring(dnetpad, example, *LISTS)
    assert len(rows(bring(dnetpad, example, "sensor_a.csv"))) == 4  # a test by itself leaves nothing to ask


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_lists_as_they_are_found(example: Path) -> None:
    """Labels in two cases, double slashes, backslashes, a byte order mark, repeats within and between tests."""
    text = (example / "train.csv").read_text().replace("train,Spoof,/crops/Spoof_0", "Train,spoof,//crops\\Spoof_0")
    (example / "train.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    again = (example / "sensor_a.csv").read_text().splitlines()[0]
    (example / "printouts.csv").write_text((example / "printouts.csv").read_text() + again + "\n")
    imported = bring(dnetpad, example, *LISTS, test_rows="val", maps="maps")
    found = rows(imported)
    assert found["images/crops/Spoof_0.png"]["label"] == "Spoof"
    assert facts(imported)["labels_read_as"] == {"spoof": "Spoof"}
    assert imported.dropped["row with the image of an earlier one"]["count"] == 1
    assert len(found) == 32


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_case_26_broken_lists(example: Path) -> None:
    """Maps matched to two images, and other slips: all of it is told at once, with list and row."""
    lines = (example / "train.csv").read_text().splitlines()
    (example / "other").mkdir()
    for name in ("Live_0.png", "Spoof_1.png"):
        Image.new("L", (64, 64)).save(example / "other" / name)
    lines[0] = "train,Live,/crops/gone.png"
    lines[1] = "tset,Spoof,/crops/Spoof_0.png"
    lines[2] = "train,Live,/../train.csv"
    lines[5] = "train,Live"
    lines.append("train,Spoof,/other/Spoof_1.png")  # shares the map of crops/Spoof_1.png
    (example / "train.csv").write_text("\n".join(lines))
    test = (example / "sensor_a.csv").read_text() + "test,Live,/crops/Spoof_3.png\n"
    (example / "sensor_a.csv").write_text(test)
    with pytest.raises(DataError) as caught:
        bring(dnetpad, example, *LISTS, test_rows="val", maps="maps")
    expected = [
        ("train.csv, row 1, column path: 'crops/gone.png' not found",),
        ("train.csv, row 2, column split: 'tset'", "did you mean 'test'?"),
        ("train.csv, row 3, column path: '../train.csv' leaves the root",),
        ("train.csv, row 6: 2 fields",),
        ("train.csv, row 25: 'other/Spoof_1.png' and 'crops/Spoof_1.png' share the map Spoof_1.png",),
        ("sensor_a.csv, row 5: 'crops/Spoof_3.png' is Live, test here and Spoof, train (", "train.csv, row 8)"),
    ]
    for parts in expected:
        assert any(all(part in problem for part in parts) for problem in caught.value.problems), parts


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_coloured_maps_by_name(example: Path) -> None:
    grey = pixels(example / "maps" / "Live_0.png")
    imsave(example / "maps" / "Live_0.png", grey, cmap="viridis", vmin=0, vmax=255)
    with pytest.raises(DataError, match=r"Live_0.png: its map .*Live_0.png: a coloured heat map \(viridis\)"):
        bring(dnetpad, example, "train.csv", test_rows="val", maps="maps")
    imported = bring(dnetpad, example, "train.csv", test_rows="val", maps="maps", colour_map="invert")
    saliency = pixels(imported.manifest.parent / "maps" / "crops" / "Live_0.png")
    np.testing.assert_allclose(saliency.astype(int), grey, atol=2)


@pytest.mark.parametrize("example", [dnetpad], indirect=True)
def test_maps_that_do_not_fit(example: Path) -> None:
    Image.new("L", (64, 32)).save(example / "maps" / "Live_0.png")
    with pytest.raises(DataError, match=r"its map .*Live_0.png: 64 x 32 pixels, the image 64 x 64"):
        bring(dnetpad, example, "train.csv", test_rows="val", maps="maps")
    with pytest.raises(DataError, match="followed by '_blended'; check maps and suffix"):
        bring(dnetpad, example, "train.csv", test_rows="val", maps="maps", suffix="_blended")


@pytest.mark.parametrize("example", [cyborg], indirect=True)
def test_cyborg_joins_tests_of_one_class(example: Path) -> None:
    imported = bring(cyborg, example, "original.csv", *TESTS)
    found = rows(imported)
    of_split = Counter((row["split"], row["label"]) for row in found.values())
    assert of_split == {
        ("train", "Real"): 8,
        ("train", "Synthetic"): 8,
        ("val", "Real"): 4,
        ("val", "Synthetic"): 4,
        ("test", "Real"): 12,
        ("test", "Synthetic"): 12,
    }
    assert {row["type"] for row in found.values() if row["split"] == "test"} == {Path(name).stem for name in TESTS}
    assert {bool(row["saliency"]) for row in found.values() if row["split"] == "train"} == {True}
    # Running numbers: val/0_real/00000.png has no map, and test images of that name have none either.
    assert not any(row["saliency"] for row in found.values() if row["split"] != "train")
    assert any("6 of 12 test images of Real are .jpg" in warning for warning in imported.warnings)


@pytest.mark.parametrize("example", [cyborg], indirect=True)
def test_cyborg_warns_of_a_test_of_one_class(example: Path) -> None:
    imported = bring(cyborg, example, "original.csv", "progan.csv", "stylegan2.csv")
    assert any("Synthetic images only: no AUROC" in warning for warning in imported.warnings)
    with pytest.raises(UsageError, match="is a folder; give the lists"):
        bring(cyborg, example, "")


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_livdet_2020(example: Path) -> None:
    imported = bring(livdet, example, "2020", maps="maps")
    found = rows(imported)
    assert {row["split"] for row in found.values()} == {"test"}
    kinds = Counter(row["type"] for row in found.values() if row["label"] == "attack")
    assert kinds == dict.fromkeys(("printed", "textured contact", "electronic display", "prosthetic", "cadaver"), 4)
    assert Counter(row["label"] for row in found.values()) == {"bona fide": 20, "attack": 20}
    assert {bool(row["saliency"]) for row in found.values() if row["label"] == "attack"} == {True}


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_livdet_crops_image_and_map_alike(example: Path) -> None:
    imported = bring(livdet, example, "2020", maps="maps", circles="circles.csv", split="draw")
    found = rows(imported)
    assert {row["split"] for row in found.values()} == {"train", "val", "test"}
    with open(example / "circles.csv", newline="") as file:
        circles = {row["filename"]: [int(row[name]) for name in "xyr"] for row in csv.DictReader(file)}
    for file, (x, y, r) in circles.items():
        row = found[f"images/{file}"]
        box = (slice(y - r - 16, y + r + 16), slice(x - r - 16, x + r + 16))
        folder = imported.manifest.parent
        np.testing.assert_array_equal(pixels(folder / row["image"]), pixels(example / "2020" / file)[box])
        if row["saliency"]:
            drawn = pixels(example / "maps" / Path(file).name)
            np.testing.assert_array_equal(pixels(folder / row["saliency"]), drawn[box])
    assert facts(imported)["crop_padding"] == 16
    check(DataOptions(manifest=imported.manifest, size=64, cache=example.parent / "cache"), SaliencyOptions())


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_livdet_crops_stay_square_where_they_leave_the_image(example: Path) -> None:
    circles = (example / "circles.csv").read_text().splitlines()
    moved = {
        "Printed/0000.png": (30, 460, 100),
        "Live/0001.png": (620, 15, 110),
        "Textured_Contact/0002.png": (320, 240, 300),
    }
    kept = [line for line in circles if line.split(",")[0] not in moved]
    added = [f"{file},{x},{y},{r}" for file, (x, y, r) in moved.items()]
    (example / "circles.csv").write_text("\n".join([*kept, *added]))
    imported = bring(livdet, example, "2020", maps="maps", circles="circles.csv")
    folder, found = imported.manifest.parent, rows(imported)
    for file, (x, y, r) in moved.items():
        row, wide = found[f"images/{file}"], 500
        box = (slice(wide + y - r - 16, wide + y + r + 16), slice(wide + x - r - 16, wide + x + r + 16))
        pairs = [(row["image"], example / "2020" / file)]
        if row["saliency"]:
            pairs.append((row["saliency"], example / "maps" / Path(file).name))
        for written, original in pairs:
            cropped = pixels(folder / written)
            assert cropped.shape == (2 * r + 32, 2 * r + 32)
            np.testing.assert_array_equal(cropped, np.pad(pixels(original), wide)[box])
    assert facts(imported)["crops_padded_with_black"] == len(moved)


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_strokes_on_a_transparent_layer_are_salient_where_drawn(example: Path) -> None:
    """EyeTagger's annotations: a colour of a third's opacity, and white where nothing is drawn."""
    grey = pixels(example / "maps" / "0000.png")
    strokes = np.full((*grey.shape, 4), 255, np.uint8)
    strokes[..., :3][grey > 0] = (0, 255, 0)
    strokes[..., 3] = np.where(grey > 0, 85, 0)
    Image.fromarray(strokes).save(example / "maps" / "0000.png")
    imported = bring(livdet, example, "2020", maps="maps")
    np.testing.assert_array_equal(pixels(imported.manifest.parent / "maps" / "Printed" / "0000.png"), grey)


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_livdet_2025(example: Path) -> None:
    found = rows(bring(livdet, example, "2025/input.csv", truth="2025/truth.csv"))
    assert [found[f"images/images/{i}.png"]["label"] for i in range(8)] == ["attack", "bona fide"] * 4
    with pytest.raises(UsageError, match=r"truth: is required .*truth,score,type"):
        bring(livdet, example, "2025/input.csv")
    truth = (example / "2025" / "truth.csv").read_text().splitlines()
    (example / "2025" / "truth.csv").write_text("\n".join(truth[:-1]))
    with pytest.raises(DataError, match=r"truth.csv: 7 rows; expected 8, one for each image of"):
        bring(livdet, example, "2025/input.csv", truth="2025/truth.csv")
    truth[0], truth[3], truth[4] = "1,0.3,live", "2,0.1,live", "0.0,,morph"
    (example / "2025" / "truth.csv").write_text("\n".join(truth))
    with pytest.raises(DataError) as caught:
        bring(livdet, example, "2025/input.csv", truth="2025/truth.csv")
    assert [problem.split("truth.csv, ")[1] for problem in caught.value.problems] == [
        "row 1: truth 1 and type 'live'; expected 0 for bona fide and 1 for attacks",
        "row 4: '2,0.1,live'; expected truth (0 or 1), score and type",
        "row 5: truth 0.0 and type 'morph'; expected 0 for bona fide and 1 for attacks",
    ]


@pytest.mark.parametrize("example", [livdet], indirect=True)
def test_livdet_folders_and_circles_that_are_wrong(example: Path) -> None:
    (example / "2020" / "Cadaver").rename(example / "2020" / "Cadavre")
    with pytest.raises(DataError, match=r"Cadavre: 4 images in a folder .*did you mean 'cadaver'\?.*folders="):
        bring(livdet, example, "2020")
    named = rows(bring(livdet, example, "2020", folders={"Cadavre": "cadaver"}))
    assert named["images/Cadavre/0008.png"]["type"] == "cadaver"
    circles = (example / "circles.csv").read_text().splitlines()
    (example / "circles.csv").write_text("\n".join([*circles[:2], "Live/0001.png,300,240,-5", *circles[4:]]))
    with pytest.raises(DataError, match=r"circles.csv, row 3: 300, 240, -5; expected x, y and r above 0"):
        bring(livdet, example, "2020", folders={"Cadavre": "cadaver"}, circles="circles.csv")
    (example / "circles.csv").write_text("\n".join([*circles[:2], *circles[4:]]).replace("Cadaver", "Cadavre"))
    imported = bring(livdet, example, "2020", folders={"Cadavre": "cadaver"}, circles="circles.csv")
    assert imported.dropped["image without an iris circle"]["count"] == 2
    assert len(rows(imported)) == 38


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("3_Contact-Lenses", "textured contact"),
        ("LIVE", "bona fide"),
        ("bona_fide", "bona fide"),
        ("Post_Mortem", "cadaver"),
        ("Paper Printouts", "printed"),
        ("fake-prosthetic-printed-with-add-ons", "prosthetic"),
    ],
)
def test_livdet_folder_names(tmp_path: Path, folder: str, kind: str) -> None:
    place = tmp_path / "source" / "sensor 1" / folder
    place.mkdir(parents=True)
    Image.new("L", (20, 20)).save(place / "a.png")
    (row,) = rows(bring(livdet, tmp_path, "source")).values()
    assert row["type"] == kind
