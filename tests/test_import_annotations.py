from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotation_project import TRIANGLE, H, Project, W, coco_json, cvat_xml, inside, oval
from lookhere.data.importers import coco, cvat, label_studio, labelme
from lookhere.data.importers.base import Ledger, import_dataset
from lookhere.data.importers.parse import mask_runs, runs_map
from lookhere.data.importers.rle_pack import pack, unpack
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.errors import DataError

TOOLS = pytest.mark.parametrize("tool", [label_studio, cvat, coco, labelme], ids=lambda tool: tool.IMPORTERS[0].name)


def example(tool: ModuleType, folder: Path) -> list[Path]:
    importer = tool.IMPORTERS[0]
    importer.example(folder)
    arguments = [text.format(folder=folder) for text in importer.example_arguments]
    assert arguments[1:] == ["--set", f"images={folder}/images"]
    return [Path(arguments[0])]


# --- every tool -----------------------------------------------------------------------------------------------------


@TOOLS
def test_example_maps_lie_on_what_the_images_show(tool: ModuleType, tmp_path: Path) -> None:
    """Each image has a disc of one grey level that nothing else in it has, and each annotation is about the disc."""
    paths = example(tool, tmp_path / "in")
    importer = tool.IMPORTERS[0]
    options = importer.Options(images=tmp_path / "in" / "images", merge="union")
    imported = import_dataset(importer, paths, options, tmp_path / "out")
    manifest = read_manifest(DataOptions(manifest=imported.manifest), SaliencyOptions(missing="error"))
    assert len(manifest) == 12
    for row in range(12):
        image = np.asarray(Image.open(manifest.image_path(row)))
        disc = (image == 250) | (image == 5)
        saliency = manifest.saliency_path(row)
        assert saliency is not None
        marked = np.asarray(Image.open(saliency)) == 255
        rows, columns = np.nonzero(disc)
        square = np.zeros_like(disc)
        square[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert (marked <= square).all()
        assert (marked & disc).sum() > 0.98 * disc.sum()  # a polygon of 24 corners misses a few pixels of the rim


@TOOLS
@pytest.mark.parametrize(
    "damage", ["", "{", "[" * 100000, "[1, 2]", "\xff\xfe", '{"images": 1, "shapes": [3]}', "<a/>"]
)
def test_damaged_files_are_data_errors(tool: ModuleType, tmp_path: Path, damage: str) -> None:
    paths = example(tool, tmp_path)
    file = next(tmp_path.rglob("*.json"), None) or paths[0]
    file.write_bytes(damage.encode("latin-1"))
    options = tool.IMPORTERS[0].Options(images=tmp_path / "images")
    with pytest.raises(DataError, match=re.escape(str(file))):
        import_dataset(tool.IMPORTERS[0], paths, options, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@TOOLS
def test_images_that_are_not_there(tool: ModuleType, tmp_path: Path) -> None:
    paths = example(tool, tmp_path)
    for image in (tmp_path / "images").rglob("attack*.png"):
        image.rename(image.with_name(f"renamed {image.name}"))
    options, ledger = tool.IMPORTERS[0].Options(images=tmp_path / "images"), Ledger()
    assert sum(bool(sample.maps) for sample in tool.read(paths, options, ledger)) == 6
    assert [entry["count"] for reason, entry in ledger.dropped.items() if "not among the images" in reason] == [6]
    for image in (tmp_path / "images").rglob("real*.png"):
        image.rename(image.with_name(image.name.replace("real", "Real")))
    ledger = Ledger()
    list(tool.read(paths, options, ledger))
    assert "no annotated image is here (12 are not)" in ledger.problems[0]


def test_annotated_at_another_size(tmp_path: Path) -> None:
    """An annotation of a smaller copy is scaled; one of another aspect ratio (a turned image) is an error."""
    project = Project(tmp_path, cvat)
    path = project.write(cvat_xml('<box label="s" xtl="3" ytl="4" xbr="20" ybr="16"/>'), "annotations.xml")
    large = project.maps(path, size=(2 * W, 2 * H))["a/1"][0]
    np.testing.assert_array_equal(large[10:30, 8:38], 1)
    assert large.sum() == pytest.approx(4 * 17 * 12, rel=0.02)
    with pytest.raises(DataError, match=f"image 0: annotated at {W} x {H} pixels, but the image has {H} x {W}"):
        project.maps(path, size=(H, W))


def test_two_names_of_one_image(tmp_path: Path) -> None:
    project = Project(tmp_path, coco)
    content = coco_json([])
    content["images"].append({"id": 9, "file_name": "test/1.png", "width": W, "height": H})
    with pytest.raises(DataError, match=r"image 9: 'test/1.png' and 'a/1.png' may both be 'a/1.png'"):
        project.maps(project.write(content))


def test_run_lengths() -> None:
    noise = np.random.default_rng(0).random((9, 7)) > 0.5
    for mask in (np.eye(3, 5) > 0, np.ones((2, 2), bool), np.zeros((2, 3), bool), noise):
        height, width = mask.shape
        np.testing.assert_array_equal(runs_map(mask_runs(mask), width, height)(width, height), mask)
        np.testing.assert_array_equal(runs_map(mask_runs(mask.T), width, height, order="F")(width, height), mask)


# --- Label Studio ---------------------------------------------------------------------------------------------------

# Encoded by @thi.ng/rle-pack, the library of Label Studio's editor, from 4 x 6 pixels RGBA, where marked pixels are
# (255, 87, 51, 200 + 8 x + y) and the others transparent.
STROKE = [[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
# fmt: off
PACKED = [
    0, 0, 0, 96, 57, 27, 252, 224, 3, 255, 171, 153, 236, 127, 171, 153, 240, 91, 0, 55, 254, 174, 103, 163, 254, 174,
    103, 179, 254, 174, 103, 195, 56, 0, 255, 234, 230, 121, 95, 234, 230, 122, 88, 140, 0, 63, 245, 115, 63, 48,
]
# Encoded by label_studio_sdk.converter.brush.mask2rle (2.1.2) from (hypot(x - 5, y - 4) < 3.2) | ((x > 9) & (y > 6)),
# 9 x 13 pixels.
PACKED_SDK = [
    0, 0, 1, 212, 57, 27, 254, 67, 0, 183, 255, 136, 192, 48, 159, 254, 27, 0, 195, 127, 248, 92, 3, 13, 255, 225, 112,
    12, 55, 255, 134, 192, 48, 159, 254, 35, 0, 183, 255, 108, 2, 223, 254, 39, 0, 183, 254,
]
# fmt: on


def ls_result(value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": W, "original_height": H, "image_rotation": 0}
    return {"id": "r1", "type": "labels", "value": value, **size, **more}


def ls_task(*annotations: Any, image: str = "/data/upload/3/0a1b2c3d-1.png") -> dict[str, Any]:
    results = [one if isinstance(one, dict) else {"result": one} for one in annotations]
    return {
        "id": 7,
        "data": {"image": image, "patient": "x"},
        "annotations": [{"id": 30 + i, "completed_by": i, **one} for i, one in enumerate(results)],
    }


BOX = {"x": 10, "y": 20, "width": 50, "height": 25, "labels": ["salient"]}


def test_rle_pack_is_label_studios() -> None:
    stroke = np.array(STROKE)
    pixels = unpack(PACKED, 96).reshape(4, 6, 4)
    rows, columns = np.indices(stroke.shape)
    np.testing.assert_array_equal(pixels[..., 3], stroke * (200 + 8 * columns + rows))
    np.testing.assert_array_equal(pixels[..., :3], stroke[..., None] * [255, 87, 51])
    y, x = np.indices((9, 13))
    mask = (np.hypot(x - 5, y - 4) < 3.2) | ((x > 9) & (y > 6))
    np.testing.assert_array_equal(
        unpack(PACKED_SDK, 9 * 13 * 4).reshape(9, 13, 4), np.repeat(mask[..., None] * 255, 4, axis=2)
    )


def test_rle_pack_round_trip_and_damage() -> None:
    random = np.random.default_rng(0)
    values = np.repeat(random.integers(0, 256, 50), random.integers(1, 3000, 50)).astype(np.uint8)
    packed = pack(values)
    np.testing.assert_array_equal(unpack(packed, len(values)), values)
    errors = 0
    for cut in random.integers(0, len(packed), 200):
        broken = [*packed[:cut], *random.integers(0, 256, 3).tolist()]
        try:
            assert len(unpack(broken, len(values))) == len(values)
        except DataError:
            errors += 1
    assert errors > 190


def test_case_28_label_studio_shapes_in_percent(tmp_path: Path) -> None:
    project = Project(tmp_path, label_studio)
    turned = {"x": 40, "y": 20, "width": 30, "height": 25, "rotation": 33}
    # Corners by label_studio_sdk.converter.utils.convert_annotation_to_yolo_obb (2.1.2) of that rectangle, 60 x 40.
    corner = [(24.0, 8.0), (39.0962, 17.8035), (33.6497, 26.1902), (18.5536, 16.3867)]
    ellipse = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 10, "rotation": 30}
    polygon = {"points": [[x / W * 100, y / H * 100] for x, y in TRIANGLE], "closed": True}
    stroke = np.zeros((H, W, 4), np.uint8)
    stroke[3:9, 40:50, 3] = 1  # any opacity is a mark
    for value, expected in (
        (turned, inside(corner)),
        (ellipse, oval(30, 20, 18, 4, 30)),
        (polygon, inside(TRIANGLE)),
        ({"format": "rle", "rle": pack(stroke)}, stroke[..., 3] > 0),
    ):
        drawn = project.maps(project.write([ls_task([ls_result(value)])]))["a/1"][0]
        assert expected.sum() > 50
        assert (drawn == expected).all(), value


def test_case_28_label_studio_annotators_labels_and_names(tmp_path: Path) -> None:
    project = Project(tmp_path, label_studio)
    other = {**BOX, "x": 0, "labels": ["artefact"]}
    task = ls_task([ls_result(BOX), ls_result(other, id="r2")], {"result": [], "was_cancelled": True}, [])
    everything = project.maps(project.write([task]))
    assert [[int(one.sum()) for one in of] for of in everything.values()] == [[36 * 10, 0], []]
    assert project.ledger.dropped["cancelled annotation (a skipped task)"]["example"].endswith("task 7, annotation 31")
    assert project.ledger.facts["observers"] == 2
    salient = project.maps(project.write([task]), labels="salient")["a/1"]
    assert [int(one.sum()) for one in salient] == [30 * 10, 0]
    with pytest.raises(
        DataError, match="labels: no region has 'Salient'; found 'salient', 'artefact'; did you mean 'salient'"
    ):
        project.maps(project.write([task]), labels=["Salient"])
    # The label may stand in a result of its own, with the id of the region.
    bare = {key: BOX[key] for key in ("x", "y", "width", "height")}
    named = [ls_result(bare, type="rectangle"), ls_result(BOX)]
    assert len(project.maps(project.write([ls_task(named)]), labels=["salient"])["a/1"]) == 1
    assert project.ledger.facts["regions"] == {"rectangle": 1}
    for image in ("1.png", "/data/local-files/?d=set/a/1.png", "s3://bucket/a/1.png?x=1", "https://host/a/1.png"):
        assert len(project.maps(project.write([ls_task([ls_result(BOX)], image=image)]))["a/1"]) == 1, image
    assert not project.ledger.warnings
    project.maps(project.write([ls_task([ls_result(BOX)], image="https://host/other/1.png")]))
    assert "1 annotated image found by name in another folder" in project.ledger.warnings[0]
    # An annotator who marked nothing counts beside another; alone, the image has no map.
    assert project.maps(project.write([ls_task([])]))["a/1"] == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ls_task([ls_result(BOX, image_rotation=90)]), "annotation 30: the image was turned by 90 degrees"),
        (ls_task([ls_result({"rle": [1, 2, "x"]})]), "annotation 30: brush: the rle is .*from 0 to 255"),
        (ls_task([ls_result({"rle": PACKED})]), f"annotation 30: brush: the rle has 96 .*expected {W * H * 4}"),
        (ls_task([ls_result({"rle": pack(np.arange(W * H * 4))[:-9]})]), "annotation 30: brush: the rle is damaged"),
        (ls_task([ls_result({"points": [[1, 2], [3, 4]]})]), "annotation 30: polygon: .*at least three points"),
        (ls_task([ls_result({**BOX, "x": None})]), "annotation 30: rectangle: x is missing"),
        (ls_task([ls_result(BOX, original_width=10**6, original_height=10**6)]), "an image of 1000000 x 1000000"),
        (ls_task([ls_result(BOX)]) | {"data": {"text": "no image"}}, ": no image file in its data; set field"),
        (ls_task([ls_result(BOX)]) | {"data": {"a": "1.png", "b": "2.png"}}, ": a = '1.png', b = '2.png' in its"),
        (ls_task([ls_result(BOX)]) | {"annotations": [4]}, r": annotations is \[4\]; expected a list of objects"),
    ],
)  # fmt: skip
def test_case_28_label_studio_names_the_task(tmp_path: Path, task: dict[str, Any], message: str) -> None:
    project = Project(tmp_path, label_studio)
    whole = ls_task([ls_result(BOX)], image="/data/upload/3/ffffffff-2.png") | {"id": 8}
    path = project.write([task, whole])
    with pytest.raises(DataError, match=f"task 7.*{message}"):
        project.maps(path)
    assert [len(maps) for maps in project.maps(path, invalid="drop").values()] == [0, 1]
    assert project.ledger.dropped["annotation that cannot be read"]["count"] == 1


def test_two_uploads_of_one_name(tmp_path: Path) -> None:
    project = Project(tmp_path, label_studio)
    tasks = [ls_task([ls_result(BOX)]), ls_task([], image="/data/upload/3/ffffffff-1.png") | {"id": 8}]
    with pytest.raises(DataError, match=r"task 8: 'ffffffff-1.png' and '0a1b2c3d-1.png' were uploaded under one name"):
        project.maps(project.write(tasks))
    tasks[1]["data"]["image"] = tasks[0]["data"]["image"]
    assert len(project.maps(project.write(tasks))["a/1"]) == 2
    Image.new("L", (W, H)).save(tmp_path / "images" / "b" / "1.png")
    with pytest.raises(DataError, match=r"task 7: '1.png' may be 'a/1.png' and 'b/1.png'"):
        project.maps(project.write(tasks))


def test_json_min_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path, label_studio)
    with pytest.raises(DataError, match="export it as JSON, not JSON-MIN"):
        project.maps(project.write([{"image": "1.png", "label": [BOX]}]))
