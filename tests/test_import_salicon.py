"""Fixations in MATLAB files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from gaze_files import SIGMA, H, W, close, literal, read_map, write_images
from lookhere.data.importers import salicon
from lookhere.data.importers.base import Imported, import_dataset
from lookhere.data.importers.salicon import SaliconOptions
from lookhere.errors import DataError
from lookhere.options import build_options


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def _mat(study: Path, points: Any, **more: Any) -> Path:
    """Write SALICON's layout with one observer per array of points."""
    gaze = np.zeros((len(points), 1), dtype=[("location", object), ("timestamp", object), ("fixations", object)])
    for i, array in enumerate(points):
        gaze[i, 0] = (np.zeros((1, 2)), np.zeros((1, 1)), np.asarray(array))
    savemat(study / "one.mat", {"gaze": gaze, "resolution": [[H, W]], **more})
    return study / "one.mat"


def _import_mat(study: Path, file: Path, **options: Any) -> Imported:
    content = {"images": study / "images", "map_bits": 16, "sigma": SIGMA, "sigma_unit": "px", **options}
    return import_dataset(salicon.IMPORTERS[0], [file], build_options(SaliconOptions, content), study / "out")


def test_salicon_counts_from_one_and_clips(study: Path) -> None:
    _import_mat(study, _mat(study, [np.array([[9, 7], [31, 21]], np.uint16), np.array([[41, 0], [1, 1]]), []]))
    first = literal([(8, 6, 1), (30, 20, 1)])
    second = literal([(39, 0, 1), (0, 0, 1)])
    close(read_map(study), (first + second) / 2)
    assert json.loads((study / "out/provenance.json").read_text())["facts"]["clipped"] == 1


def test_other_mat_files_by_option(study: Path) -> None:
    savemat(study / "one.mat", {"fix": np.array([[1, 1], [6, 8], [20, 30]])})
    _import_mat(study, study / "one.mat", variable="fix", first_pixel=0, axes="yx", skip_first=True)
    close(read_map(study), literal([(8, 6, 1), (30, 20, 1)]))


def test_mat_files_that_cannot_be_read(study: Path) -> None:
    def refused(file: Path, message: str, **options: Any) -> None:
        with pytest.raises(DataError) as error:
            _import_mat(study, file, **options)
        assert message in str(error.value)
        assert str(file) in str(error.value)

    file = study / "one.mat"
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    refused(file, "a MATLAB 7.3 (HDF5) file")
    file.write_bytes(b"nothing of the kind" * 20)
    refused(file, "cannot be read as a MATLAB file")
    refused(
        _mat(study, [[[1, 2]]]), "no variable 'gazes'; it has gaze, resolution; did you mean 'gaze'?", variable="gazes"
    )
    refused(_mat(study, [[[1, 2]]]), "has no field 'fixation'", field="fixation")
    refused(_mat(study, [[[1, 2]]], resolution=[[480, 640]]), "recorded on 640 x 480 pixels")
    refused(_mat(study, [[[1, 2, 3]]]), "positions of shape 1 x 3")
    refused(_mat(study, [[[90, 90], [2, 2], [99, 1]]]), "2 of 3 fixations lie outside their image")
