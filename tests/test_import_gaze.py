"""Fixations of every eye tracker. ``case_N`` is case N of the project's list of acceptance cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gaze_files import (
    POINTS,
    SCREEN,
    SIGMA,
    H,
    W,
    close,
    core,
    eyelink,
    gazepoint,
    literal,
    neon,
    read_map,
    to_screen,
    tobii,
    write_images,
)
from lookhere.data.importers import fixations
from lookhere.data.importers.base import Imported, import_dataset
from lookhere.data.importers.fixations import FixationsOptions
from lookhere.errors import DataError, LookhereError, UsageError
from lookhere.options import build_options

BASE = {"sigma": SIGMA, "sigma_unit": "px", "weighting": "duration"}
GENERIC = {
    **BASE,
    "format": "generic",
    "origin": "top-left",
    "time_unit": "ms",
    "columns": {"image": "im", "x": "x", "y": "y", "duration": "d"},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def _import(study: Path, *files: Path, **options: Any) -> Imported:
    content = {"images": study / "images", "map_bits": 16, **options}
    return import_dataset(fixations.IMPORTERS[0], files, build_options(FixationsOptions, content), study / "out")


def _table(path: Path, points: Any = POINTS, separator: str = ",") -> Path:
    rows = [["im", "x", "y", "d"], *[["one.png", *map(str, point)] for point in points]]
    path.write_text("\n".join(separator.join(row) for row in rows) + "\n")
    return path


def test_tobiis_example_against_pandas_and_a_literal_sum(tmp_path: Path) -> None:
    importer = fixations.IMPORTERS[0]
    importer.example(tmp_path)
    options = FixationsOptions(
        images=tmp_path / "images",
        map_bits=16,
        format="tobii",
        coordinates="screen-px",
        screen=(1920, 1080),
        shown="fit",
        weighting="duration",
        sigma=0.05,
        sigma_unit="fraction",
    )
    import_dataset(importer, [tmp_path / "recordings"], options, tmp_path / "out")
    maps = []
    for file in sorted((tmp_path / "recordings").iterdir()):
        rows = pd.read_csv(file, sep="\t", encoding="utf-16", decimal=",")
        rows = rows[(rows["Eye movement type"] == "Fixation") & (rows["Presented Stimulus name"] == "03.png")]
        rows = rows.drop_duplicates("Eye movement type index")
        # 48 x 36 pixels fit 1920 x 1080 at 30 times their size, 240 from the left.
        x, y = (rows["Fixation point X"] - 240) / 30, rows["Fixation point Y"] / 30
        points = np.column_stack([x, y, rows["Gaze event duration [ms]"]])
        assert len(points) == 2
        maps.append(literal(points, (48, 36), 0.05 * 48))
    drawn = np.asarray(Image.open(tmp_path / "out/maps/attack/03.png")) / 65535
    np.testing.assert_allclose(drawn, np.mean(maps, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "convert"),
    [
        ({"coordinates": "image-px"}, lambda x, y: (x, y)),
        ({"coordinates": "image-px", "origin": "bottom-left"}, lambda x, y: (x, H - y)),
        ({"coordinates": "image-fraction"}, lambda x, y: (x / W, y / H)),
        ({"coordinates": "image-fraction", "origin": "bottom-left"}, lambda x, y: (x / W, 1 - y / H)),
        ({"coordinates": "screen-px", "shown": "fit"}, lambda x, y: (20 + 3 * x, 3 * y)),
        ({"coordinates": "screen-px", "shown": [20, 0, 140, 90]}, lambda x, y: (20 + 3 * x, 3 * y)),
        ({"coordinates": "screen-px", "shown": "centre"}, lambda x, y: (60 + x, 30 + y)),
        ({"coordinates": "screen-fraction", "shown": "fit"}, lambda x, y: ((20 + 3 * x) / 160, 3 * y / 90)),
        (
            {"coordinates": "screen-fraction", "shown": "fit", "origin": "bottom-left"},
            lambda x, y: ((20 + 3 * x) / 160, 1 - 3 * y / 90),
        ),
    ],
)
def test_every_coordinate_space_gives_the_same_map(study: Path, options: Any, convert: Callable[..., Any]) -> None:
    table = _table(study / "g.csv", [(*convert(x, y), d) for x, y, d in POINTS])
    _import(study, table, **{**GENERIC, "screen": SCREEN, **options})
    close(read_map(study), literal(POINTS))


@pytest.mark.parametrize(
    ("unit", "sigma", "extra"),
    [("px", SIGMA, {}), ("fraction", SIGMA / W, {}), ("degrees", 0.5, {"pixels_per_degree": 15})],
)
def test_sigma_in_every_unit_and_counts(study: Path, unit: str, sigma: float, extra: Any) -> None:
    table = _table(study / "g.csv", to_screen(POINTS))
    space = {"coordinates": "screen-px", "screen": SCREEN, "shown": "fit", "weighting": "count"}
    _import(study, table, **{**GENERIC, **space, "sigma": sigma, "sigma_unit": unit, **extra})
    close(read_map(study), literal([(x, y, 1) for x, y, _ in POINTS]))


NOT_VALID = {"row marked as not valid": 1}


@pytest.mark.parametrize(
    ("write", "dropped"),
    [
        (tobii, {"row of another eye movement: Saccade": 1}),
        (neon, NOT_VALID),
        (core, NOT_VALID),
        (gazepoint, NOT_VALID),
        (eyelink, {"fixation while no image was shown": 2, "fixation that began before its image was shown": 2}),
    ],
)
def test_every_format(
    study: Path, write: Callable[[Path], tuple[Path, dict[str, Any]]], dropped: dict[str, int]
) -> None:
    file, options = write(study)
    imported = _import(study, file, **BASE, **options)
    close(read_map(study), literal(POINTS))
    assert {reason: entry["count"] for reason, entry in imported.dropped.items()} == dropped
    facts = json.loads((study / "out/provenance.json").read_text())["facts"]
    assert facts["fixations"] == 2
    assert facts["median_duration_ms"] == 300


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", ["\t", ";"])
def test_encodings_separators_and_decimal_commas(study: Path, encoding: str, separator: str) -> None:
    table = _table(study / "g.tsv", [(8.5, 6.25, 200), (30.0, 20.0, 400)], separator)
    table.write_text(table.read_text().replace(".5", ",5").replace(".25", ",25"), encoding=encoding)
    _import(study, table, **GENERIC, coordinates="image-px")
    close(read_map(study), literal([(8.5, 6.25, 200), (30, 20, 400)]))


def test_observers_are_merged_after_each_was_normalised(study: Path) -> None:
    one, two = _table(study / "1.csv", POINTS[:1]), _table(study / "2.csv", POINTS[1:])
    _import(study, one, two, **GENERIC, coordinates="image-px")
    close(read_map(study), (literal(POINTS[:1]) + literal(POINTS[1:])) / 2)


def test_case_27_rows_are_dropped_and_counted(study: Path) -> None:
    text = "im,x,y,d,ok\n"
    text += "".join(f"a\\one.png,{x},{y},{d},1\n" for x, y, d in POINTS)
    text += "a/one.png,41,5,200,1\na/one.png,-3,5,200,TRUE\na/one.png,nan,5,200,1\na/one.png,,5,200,1\n"
    text += "a/one.png,5,5,0,1\na/one.png,5,5,-1,1\na/one.png,5,5,200,0\ncalibration.png,5,5,200,1\n"
    (study / "g.csv").write_text(text)
    columns = {**GENERIC["columns"], "valid": "ok"}
    imported = _import(study, study / "g.csv", **{**GENERIC, "columns": columns, "coordinates": "image-px"})
    assert {reason: entry["count"] for reason, entry in imported.dropped.items()} == {
        "row without a position": 2,
        "row whose duration is not above 0": 2,
        "row marked as not valid": 1,
        "row of an unknown image": 1,
        "fixation outside its image": 2,
    }
    assert "calibration.png" in imported.dropped["row of an unknown image"]["example"]
    assert imported.warnings == ["3 of 4 images without a map"]
    close(read_map(study), literal(POINTS))


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (to_screen(POINTS), {"coordinates": "image-px"}, "screen-px with where the image was shown"),
        (POINTS, {"coordinates": "image-fraction"}, "These look like pixels"),
        ([(x / W, y / H, d) for x, y, d in POINTS], {"coordinates": "image-px"}, "These look like fractions"),
        (
            POINTS,
            {"coordinates": "image-px", "time_unit": "s"},
            "the median fixation lasts 300000 ms with time_unit = s",
        ),
        (POINTS, {"coordinates": "image-px", "time_unit": "us"}, "the median fixation lasts 0.3 ms"),
    ],
)
def test_case_27_the_wrong_space_or_unit_is_an_error(study: Path, points: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        _import(study, _table(study / "g.csv", points), **{**GENERIC, **options})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            {},
            [
                "format: is required; expected tobii|neon|pupil-core|gazepoint|eyelink|generic",
                "coordinates: is required; expected image-px|image-fraction|screen-px|screen-fraction",
                "weighting: is required; expected count|duration",
                "sigma: is required; expected number > 0",
                "sigma_unit: is required; expected px|fraction|degrees",
            ],
        ),
        (
            {**BASE, "format": "generic", "coordinates": "screen-fraction"},
            [
                "origin: is required; expected top-left|bottom-left",
                "columns.duration: is required",
                "shown: is required for coordinates of the screen; expected fit|centre|[left, top, right, bottom]",
                "screen: is required for coordinates of the screen",
            ],
        ),
        ({**GENERIC, "coordinates": "image-px", "time_unit": None}, ["time_unit: is required; expected s|ms|us|ns"]),
        ({**BASE, "format": "neon", "coordinates": "screen-px"}, ["coordinates: Pupil Labs Neon"]),
        ({**GENERIC, "coordinates": "image-px", "columns": {"imge": "x"}}, ["no column 'imge'; did you mean 'image'?"]),
        ({**GENERIC, "coordinates": "image-px", "sigma_unit": "degrees"}, ["pixels_per_degree: is required"]),
        ({**GENERIC, "coordinates": "image-px", "columns": {"x": "x"}}, ["columns.duration: is required"]),
        ({**GENERIC, "coordinates": "image-px", "columns": {"x": "x", "duration": "d"}}, ["columns.y: is required"]),
        (
            {**GENERIC, "coordinates": "image-px", "columns": {"x": "x", "y": "y", "duration": "d"}},
            ["image_name: is required, since"],
        ),
        ({**BASE, "format": "eyelink", "coordinates": "screen-px", "shown": "fit"}, ["screen: is required, since"]),
        ({**GENERIC, "coordinates": "screen-px", "screen": SCREEN, "shown": [9, 0, 9, 9]}, ["with left < right"]),
        ({**GENERIC, "coordinates": "image-px", "image_message": "("}, ["image_message: '(' is not a regular"]),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(study: Path, options: Any, messages: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        _import(study, _table(study / "g.csv"), **options)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"im,x,y,d\none.png,1,2\n", "g.csv, row 2: 3 fields; expected 4"),
        (b"im,X pos,y,d\n", "row 1: no column 'x' among im, X pos, y, d"),
        (b"im,x,x,y,d\n", "row 1: column 'x' occurs 2 times"),
        (b"FPOGX,FPOGY,MEDIA_ID\n", "it has the positions of format = gazepoint with coordinates = screen-fraction"),
        (b"one column\n1\n", "row 1: expected names of columns separated by"),
        (b"", "row 1: expected names of columns"),
        (b"PK\x03\x04\x14,;", "a spreadsheet; export it as TSV or CSV"),
        (b"im,x,y,d\n\xff\xfe\xff,1,1,1\n", "near row 1: neither UTF-8 nor UTF-16"),
        (
            b"im,x,y,d\nzero.png,1,1,200\n",
            "no fixation of any of its images was found; dropped: row of an unknown image: 1",
        ),
    ],
)
def test_damaged_tables(study: Path, content: bytes, message: str) -> None:
    (study / "g.csv").write_bytes(content)
    with pytest.raises(LookhereError) as error:
        _import(study, study / "g.csv", **GENERIC, coordinates="image-px")
    assert message in str(error.value)


def test_both_eyes_of_an_eyelink_are_asked_for(study: Path) -> None:
    file, options = eyelink(study)
    text = file.read_text()
    file.write_text(text.replace("ESACC", "EFIX L 1500 1600 300 80 45 900\nESACC"))
    with pytest.raises(UsageError, match=r"eye: is required, since .* holds both eyes; expected left\|right"):
        _import(study, file, **BASE, **options)
    _import(study, file, **BASE, **options, eye="right")
    close(read_map(study), literal(POINTS))
