from __future__ import annotations

from pathlib import Path

import pytest

from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real image sets are not beside the repository")
@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "maps"),
    [
        ("chest", ("normal", "pneumonia"), {"normal": 540, "bacterial": 1300}, {"viral": 1171}, 4545),
        (
            "tiles",
            ("free", "defect"),
            {"free": 481, "blowhole": 58, "break": 43, "fray": 10},
            {"crack": 57, "uneven": 103},
            388,
        ),
        (
            "boards",
            ("normal", "defect"),
            {"normal": 1500, "open": 500, "spur": 500, "pinhole": 500},
            {"mousebite": 250, "short": 250, "copper": 250},
            3292,
        ),
    ],
)
def test_real_sets(name: str, classes: tuple[str, ...], train: dict[str, int], test: dict[str, int], maps: int) -> None:
    manifest = read_manifest(DataOptions(manifest=SHARED / name / "manifest.csv"), SaliencyOptions())
    counts = manifest.counts()
    assert manifest.classes == classes
    assert {count.type: count.images for count in counts if count.split == "train"} == train
    unseen = {count.type: count.images for count in counts if count.split == "test" and count.type not in train}
    assert unseen == test
    assert sum(count.maps for count in counts) == maps
