from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotation_project import TRIANGLE, H, Project, W, coco_json, cvat_xml, inside, oval
from lookhere.data.importers import coco, cvat, labelme
from lookhere.data.importers.base import import_dataset
from lookhere.data.importers.parse import mask_runs
from lookhere.errors import DataError, UsageError

# --- COCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco_masks_are_pycocotools(tmp_path: Path) -> None:
    mask_api = pytest.importorskip("pycocotools.mask", reason="the oracle pycocotools is not installed")
    random, project = np.random.default_rng(0), Project(tmp_path, coco)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = random.random((H, W)) < share
        mask[:, 20:50] |= share > 0  # long runs have more than one character
        packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (packed["counts"].decode(), mask_runs(mask.T).tolist()):
            drawn = project.maps(project.write(coco_json([{"size": [H, W], "counts": counts}])))["a/1"][0]
            np.testing.assert_array_equal(drawn, mask_api.decode(packed))


@pytest.mark.parametrize(
    "polygon",
    [
        [10, 5, 50, 8, 44, 35, 12, 30],
        [5.5, 30.2, 30.1, 3.7, 55.2, 31.9, 2.0, 12.4, 57.3, 11.8],  # a star that crosses itself: its middle is outside
        [-20, 10, 30, -15, 80, 25, 30, 60],  # leaves the image on all sides
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_case_29_coco_polygons_are_pycocotools(tmp_path: Path, polygon: list[float]) -> None:
    """Equal but for the outline, which pycocotools draws on a grid of fifths of a pixel and rounds."""
    mask_api = pytest.importorskip("pycocotools.mask", reason="the oracle pycocotools is not installed")
    expected = mask_api.decode(mask_api.frPyObjects([polygon], H, W))[..., 0]
    project = Project(tmp_path, coco)
    drawn = project.maps(project.write(coco_json([[polygon]])))["a/1"][0]
    start = np.reshape(polygon, (-1, 2))
    edge = np.roll(start, -1, axis=0) - start
    centres = np.moveaxis(np.indices((H, W))[::-1], 0, -1)[:, :, None] + 0.5
    along = np.clip(((centres - start) * edge).sum(axis=-1) / (edge**2).sum(axis=-1), 0, 1)
    distance = np.linalg.norm(centres - start - along[..., None] * edge, axis=-1).min(axis=-1)
    np.testing.assert_array_equal(drawn[distance > 1], expected[distance > 1])
    assert (drawn != expected).mean() < 0.03


def test_coco_annotators(tmp_path: Path) -> None:
    """Annotations of one file are a union; files, or the values of a key, are annotators."""
    project = Project(tmp_path, coco)
    content = coco_json([[[0, 0, 10, 0, 10, 10, 0, 10]], [[5, 0, 15, 0, 15, 10, 5, 10]]])
    one, two = project.write(content), project.write(coco_json([[]], bbox=[0, 0, 4, 5]), "two.json")
    assert [int(of.sum()) for of in project.maps(one, two)["a/1"]] == [150, 20]
    assert [int(of.sum()) for of in project.maps(one, annotator="id")["a/1"]] == [100, 100]
    with pytest.raises(DataError, match="annotation 50: has no 'reader'"):
        project.maps(one, annotator="reader")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [H, W], "counts": [5, 6]}, f"mask: the runs cover 11 pixels; expected {W} x {H} = {W * H}"),
        ({"size": [H, W], "counts": "eP1"}, "mask: the runs cover .* pixels"),
        ({"size": [H, W], "counts": "5é"}, "mask: counts are damaged at character 'é'"),
        ({"size": [H, W], "counts": "5P"}, "mask: counts are damaged; they end within a run"),
        ({"size": [H, W], "counts": [W * H + 5, -5]}, "mask: the rle is .*; expected a list of whole numbers"),
        ({"size": [W, H], "counts": [W * H]}, rf"mask: size is \[{W}, {H}\]; expected \[height, width\]"),
        ({"size": [100000, 100000], "counts": [10**10]}, "mask: size is"),
        ([[1, 2, 3, 4]], "polygon: .*at least three points"),
        ([[1, 2, 3, 4, 5]], "polygon: expected a list .x, y, x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon: points are"),
        ("polygon", "polygon: segmentation; expected a list of polygons"),
        (None, "box: neither segmentation nor bbox"),
    ],
)  # fmt: skip
def test_case_29_coco_names_the_annotation(tmp_path: Path, segmentation: Any, message: str) -> None:
    project = Project(tmp_path, coco)
    with pytest.raises(DataError, match=f"annotation 50: {message}"):
        project.maps(project.write(coco_json([segmentation])))


def test_case_29_coco_images(tmp_path: Path) -> None:
    project = Project(tmp_path, coco)
    with pytest.raises(DataError, match="annotation 50: image_id is 4, which no image has"):
        project.maps(project.write(coco_json([[]], image_id=4)))
    huge = coco_json([{"size": [10**5, 10**5], "counts": [10**10]}])
    huge["images"][0].update(width=10**5, height=10**5)
    with pytest.raises(DataError, match="annotation 50: an image of 100000 x 100000 pixels; expected 1 to"):
        project.maps(project.write(huge))


# --- CVAT -----------------------------------------------------------------------------------------------------------


def test_cvat_shapes(tmp_path: Path) -> None:
    project = Project(tmp_path, cvat)
    angle = np.radians(20)
    around = np.array([(-15, -5), (15, -5), (15, 5), (-15, 5)]) @ [
        [np.cos(angle), np.sin(angle)],
        [-np.sin(angle), np.cos(angle)],
    ]
    mask = np.zeros((H, W), bool)
    mask[10:12, 6:9] = [[False, True, True], [True, False, False]]
    for shape, expected in (
        ('<box xtl="15" ytl="15" xbr="45" ybr="25" rotation="20"/>', inside(np.add(around, (30, 20)))),
        ('<ellipse cx="30" cy="20" rx="18" ry="4" rotation="320"/>', oval(30, 20, 18, 4, -40)),
        ('<polygon points="6.3,4.1;48.2,12.4;24.1,36.3"/>', inside(TRIANGLE)),
        ('<mask rle="1, 3, 2" left="6" top="10" width="3" height="2"/>', mask),
    ):  # fmt: skip
        drawn = project.maps(project.write(cvat_xml(shape), "annotations.xml"))["a/1"][0]
        assert (drawn == expected).all(), shape
    shapes = '<mask rle="0" left="0" top="0" width="1" height="1"/><points points="1,2"/><tag label="x"/>'
    assert project.maps(project.write(cvat_xml(shapes), "annotations.xml"))["a/1"] == []
    assert len(project.ledger.dropped) == 3  # the mask, the points, and an image without a region


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + cvat_xml(""), "declares a document type or entities.*refused"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd">' + cvat_xml(""), "declares a document type or entities.*refused"),
        (cvat_xml('<polygon points="1,2;3,4"/>'), "shape 1: polygon: .*at least three points"),
        (cvat_xml('<polygon points="1,2;3"/>'), "shape 1: polygon: points are"),
        (cvat_xml('<box xtl="1" ytl="x" xbr="3" ybr="4"/>'), "shape 1: box: ytl is 'x'; expected a number"),
        (cvat_xml('<ellipse cx="1" cy="1" rx="0" ry="2"/>'), "shape 1: ellipse: .*radii above 0"),
        (cvat_xml('<mask rle="1,2" left="0" top="0" width="3" height="2"/>'), "shape 1: mask: the runs cover 3 pixels"),
        (cvat_xml("")[:-3], "not valid XML"),
        ("<annotations><track/></annotations>", "export it as 'CVAT for images 1.1'"),
        ("<html/>", "its root is <html>; expected <annotations>"),
    ],
)  # fmt: skip
def test_case_30_cvat(tmp_path: Path, xml: str, message: str) -> None:
    project = Project(tmp_path, cvat)
    with pytest.raises(DataError, match=message):
        project.maps(project.write(xml, "annotations.xml"))


def test_case_30_entity_bomb_is_refused_at_once(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "boom">{entities}]><annotations>&e11;</annotations>'
    project = Project(tmp_path, cvat)
    with pytest.raises(DataError, match="refused"):
        project.maps(project.write(bomb, "annotations.xml"))


def test_cvat_needs_defusedxml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cvat.IMPORTERS[0].example(tmp_path)
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    options = cvat.AnnotationOptions(images=tmp_path / "images")
    with pytest.raises(UsageError, match=r"pip install 'lookhere\[annotations\]'"):
        import_dataset(cvat.IMPORTERS[0], [tmp_path / "annotations.xml"], options, tmp_path / "out")


def test_cvat_mask_outside_the_image(tmp_path: Path) -> None:
    project = Project(tmp_path, cvat)
    shape = f'<mask rle="0,4" left="{W - 1}" top="0" width="2" height="2"/>'
    with pytest.raises(DataError, match="leaves the image"):
        project.maps(project.write(cvat_xml(shape), "annotations.xml"))


# --- LabelMe --------------------------------------------------------------------------------------------------------


def labelme_json(image: object, *shapes: dict[str, Any]) -> dict[str, Any]:
    return {"imagePath": image, "imageWidth": W, "imageHeight": H, "shapes": list(shapes)}


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_shapes(tmp_path: Path) -> None:
    project = Project(tmp_path, labelme)
    mask = np.random.default_rng(0).random((4, 7)) > 0.5
    whole = np.zeros((H, W), bool)
    whole[5:9, 3:10] = mask
    rows, columns = np.indices((H, W)) + 0.5
    rectangle = (rows > 3) & (rows < 11) & (columns > 2) & (columns < 30)
    for shape, expected in (
        ({"points": TRIANGLE}, inside(TRIANGLE)),
        ({"shape_type": "rectangle", "points": [[30, 3], [2, 11]]}, rectangle),
        ({"shape_type": "circle", "points": [[20, 15], [23, 19]]}, np.hypot(columns - 20, rows - 15) <= 5),
        ({"shape_type": "mask", "points": [[3, 5], [9, 8]], "mask": png(mask)}, whole),
        ({"shape_type": "mask", "points": [[3, 5], [9, 8]], "mask": png(mask.astype(np.uint8))}, whole),
    ):
        drawn = project.maps(project.write(labelme_json("a\\1.png", shape)))["a/1"][0]
        np.testing.assert_array_equal(drawn, expected)
    assert project.maps(project.write(labelme_json("1.png", {"shape_type": "line", "points": []})))["a/1"] == []


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..\\..\\secret.png", "/etc/passwd", "C:\\x\\1.png", "\\\\host\\1.png"]
)
def test_case_30_labelme_traversal(tmp_path: Path, path: str) -> None:
    project = Project(tmp_path, labelme)
    with pytest.raises(DataError, match="leads out of the folder of images"):
        project.maps(project.write(labelme_json(path)))


@pytest.mark.parametrize("path", ["a/1.png", "1.png", ".\\a\\1.png", "../images/a/1.png", "..\\images\\a\\1.png"])
def test_labelme_paths(tmp_path: Path, path: str) -> None:
    project = Project(tmp_path, labelme)
    (tmp_path / "json").mkdir()
    file = project.write(labelme_json(path, {"shape_type": "circle", "points": [[9, 9], [9, 12]]}), "json/1.json")
    assert [len(maps) for maps in project.maps(file.parent).values()] == [1, 0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"shape_type": "mask", "points": [[3, 5], [9, 9]], "mask": png(np.eye(7) > 0)}, "mask: has a PNG of 7 x 7"),
        ({"shape_type": "mask", "points": [[3, 5], [9, 9]], "mask": "AAAA"}, "mask: its PNG cannot be decoded"),
        ({"shape_type": "rectangle", "points": [[3, 5]]}, "rectangle: has 1 points; expected 2"),
        ({"shape_type": "circle", "points": [[3, 5], [3, 5]]}, "circle: .*radii above 0"),
        ({"shape_type": "polygon"}, r"polygon: points are None; expected pairs \(x, y\)"),
    ],
)  # fmt: skip
def test_labelme_names_file_and_shape(tmp_path: Path, shape: dict[str, Any], message: str) -> None:
    project = Project(tmp_path, labelme)
    with pytest.raises(DataError, match=f"export.json, shape 1: {message}"):
        project.maps(project.write(labelme_json("1.png", shape)))
