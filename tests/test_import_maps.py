"""What importers draw maps, splits and names with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lookhere.data.importers.lookup import Lookup
from lookhere.data.importers.maps import (
    ellipse_map,
    fixation_map,
    mask_map,
    pixels_per_degree,
    polygon_map,
    rectangle_map,
    sigma_pixels,
    union,
)
from lookhere.data.importers.splits import draw_splits
from lookhere.errors import DataError, UsageError

W, H = 41, 29


def test_a_fixation_map_is_the_literal_sum_of_gaussians() -> None:
    random = np.random.default_rng(1)
    x, y, weight = random.uniform(-3, 45, 30), random.uniform(-3, 33, 30), random.uniform(0, 2, 30)
    sigma_x, sigma_y = random.uniform(0.5, 9, 30), random.uniform(0.5, 9, 30)
    literal = np.zeros((H, W))
    for k in range(30):
        for row in range(H):
            for column in range(W):
                literal[row, column] += weight[k] * np.exp(
                    -((column - x[k]) ** 2) / (2 * sigma_x[k] ** 2) - (row - y[k]) ** 2 / (2 * sigma_y[k] ** 2)
                )
    drawn = fixation_map(x, y, weight, sigma_x, sigma_y)(W, H)
    assert drawn.dtype == np.float32
    assert drawn.max() == 1
    np.testing.assert_allclose(drawn, literal / literal.max(), rtol=1e-5, atol=1e-9)
    assert not fixation_map([], [])(W, H).any()
    for wrong in ({"weight": -1}, {"sigma_x": 0}, {"x": np.nan}):
        with pytest.raises(ValueError):
            fixation_map(**{"x": 1, "y": 1, **wrong})


def test_polygons_hold_the_pixels_whose_centres_lie_inside() -> None:
    random = np.random.default_rng(2)
    centres = np.stack(np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5), -1).reshape(-1, 2)
    for corners in (3, 4, 5, 9):  # many of them cross themselves and leave the image
        points = random.uniform((-10, -10), (W + 10, H + 10), (corners, 2))
        expected = Outline(points).contains_points(centres).reshape(H, W)
        np.testing.assert_array_equal(polygon_map(points)(W, H), expected)
    angle = np.exp(1j * np.deg2rad(30))
    turned = ((centres @ (1, 1j)) - (12 + 3j)) / angle  # y is down, so a positive angle turns clockwise
    inside = (turned.real > 0) & (turned.real < 17) & (turned.imag > 0) & (turned.imag < 8)
    np.testing.assert_array_equal(rectangle_map(12, 3, 17, 8, 30)(W, H), inside.reshape(H, W))
    inside = (turned.real / 11) ** 2 + (turned.imag / 5) ** 2 <= 1
    np.testing.assert_array_equal(ellipse_map(12, 3, 11, 5, 30)(W, H), inside.reshape(H, W))
    np.testing.assert_array_equal(
        polygon_map([(2, 1), (5, 1), (5, 4), (2, 4)])(W, H).nonzero()[1].ravel()[:3], [2, 3, 4]
    )


def test_masks_are_placed_and_unions_take_the_largest() -> None:
    mask = np.array([[1, 0.25], [0, 1]])
    drawn = union(mask_map(mask, 3, 2), mask_map(np.full((1, 2), 0.5), 3, 2))(W, H)
    np.testing.assert_array_equal(drawn[2:4, 3:5], [[1, 0.5], [0, 1]])
    assert np.isclose(drawn.sum(), 2.5)
    assert not union()(W, H).any()
    with pytest.raises(DataError, match="leaves the image of 41 x 29"):
        mask_map(mask, W - 1, 0)(W, H)


def test_sigmas_have_units() -> None:
    assert sigma_pixels(30, "px", 640) == 30
    assert sigma_pixels(0.1, "fraction", 640) == 64
    per_degree = pixels_per_degree(distance=60, screen_width=52, screen_pixels=1920)
    assert per_degree == pytest.approx(1920 / 52 * 60 * 2 * np.tan(np.pi / 360))
    assert sigma_pixels(2, "degrees", 640, per_degree) == 2 * per_degree
    with pytest.raises(UsageError, match="pixels_per_degree: is required"):
        sigma_pixels(2, "degrees", 640)


def test_splits_keep_groups_together_and_shares_by_class() -> None:
    names = [f"n{i:03d}" for i in range(200)]
    labels = ["a" if i < 100 else "b" for i in range(200)]
    groups = [f"g{i // 4}" if i % 3 else "" for i in range(200)]
    drawn = draw_splits(names, labels, groups, [""] * 200, (0.7, 0.1, 0.2), seed=3)
    counts = Counter(zip(labels, drawn, strict=True))
    for label in "ab":
        for split, share in (("train", 70), ("val", 10), ("test", 20)):
            assert abs(counts[label, split] - share) <= 2
    of_group: dict[str, set[str]] = {}
    for group, split in zip(groups, drawn, strict=True):
        of_group.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for group, found in of_group.items() if group)
    order = np.random.default_rng(0).permutation(200)
    shuffled = draw_splits(
        *([column[i] for i in order] for column in (names, labels, groups)), [""] * 200, (0.7, 0.1, 0.2), 3
    )
    assert [drawn[i] for i in order] == shuffled
    assert drawn != draw_splits(names, labels, groups, [""] * 200, (0.7, 0.1, 0.2), seed=4)
    given = ["test_b", *[""] * 199]
    groups[0] = "g0"
    kept = draw_splits(names, labels, groups, given, (0.7, 0.1, 0.2), seed=3)
    assert {kept[i] for i in range(4) if groups[i] == "g0"} == {"test_b"}
    assert Counter(draw_splits(names[:4], ["a"] * 4, [""] * 4, [""] * 4, (0.7, 0.1, 0.2), 0)) == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


def test_case_26_names_that_fit_two_files_are_refused() -> None:
    lookup = Lookup(
        (path, path) for path in ("live/1.png", "attack/1.png", "live/2.jpg", "live/2.png", "live/v1.2.png")
    )
    assert lookup.find("live\\1.png") == "live/1.png"
    assert lookup.find("D:/study/attack/1.tif") == "attack/1.png"
    assert lookup.find("2.png") == "live/2.png"
    assert lookup.find("v1.2") == "live/v1.2.png"
    assert lookup.find("3.png") is None
    assert lookup.find("../../etc/passwd") is None
    for ambiguous in ("1.png", "other/1.jpg", "2"):
        with pytest.raises(DataError, match="may be '"):
            lookup.find(ambiguous)
    alone = Lookup([("attack/7.png", 7)])
    assert alone.find("upload/7.png") == 7
    with pytest.raises(DataError, match=r"'live/7\.png' and 'upload/7.png' may both be 'attack/7.png'"):
        alone.find("live/7.png")
    known = Lookup([("attack/7.png", 7)])
    assert known.find("attack/7.png") == known.find("D:/attack/7.png") == 7
    with pytest.raises(DataError, match="may both be"):
        known.find("live/7.png")
