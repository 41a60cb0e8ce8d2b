"""Tiny synthetic folders in the layouts of the lists of images: D-NetPAD, CYBORG and LivDet-Iris."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def dnetpad(folder: Path) -> None:
    """Write a training list with maps by name, and two tests of one class each."""
    train = [("train" if i < 8 else "test", f"crops/{kind}_{i}.png") for i in range(12) for kind in ("Live", "Spoof")]
    tests = {
        "sensor_a": [("test", f"sensor_a/Live_{i}.png") for i in range(4)],
        "printouts": [("test", f"printouts/Spoof_{i}.png") for i in range(4)],
    }
    _draw(folder, [file for _, file in train], seed=0, maps="maps")
    for seed, rows in enumerate(tests.values(), start=1):
        _draw(folder, [file for _, file in rows], seed)
    for name, rows in {"train": train, **tests}.items():
        _write(folder / f"{name}.csv", (f"{split},{Path(file).name.split('_')[0]},/{file}" for split, file in rows))


def cyborg(folder: Path) -> None:
    """Write the folders and lists of CYBORG with a few pictures in each."""
    kinds = {"0_real": "Real", "1_fake": "Synthetic"}
    train = [f"train/original_data/{kind}/p1_{i}_{kind[2:]}.png" for i in range(8) for kind in kinds]
    val = [f"val/{kind}/{i:05d}.png" for i in range(4) for kind in kinds]
    tests = {
        "ffhq": [f"test/0_real/ffhq_aligned/{i:05d}.png" for i in range(6)],
        "celeba-hq": [f"test/0_real/celeba-hq_real_aligned/{i:05d}.jpg" for i in range(6)],
        "progan": [f"test/1_fake/progan_aligned/{i:06d}.png" for i in range(6)],
        "stylegan2": [f"test/1_fake/stylegan2_aligned/{i:06d}.png" for i in range(6)],
    }
    _draw(folder, train, seed=0, maps="train/heatmaps")
    for seed, files in enumerate([val, *tests.values()], start=1):
        _draw(folder, files, seed)
    lists = {name: [("test", file) for file in files] for name, files in tests.items()}
    lists["original"] = [("train", file) for file in train] + [("test", file) for file in val]
    for name, rows in lists.items():
        _write(folder / f"{name}.csv", (f"{split},{kinds[_kind(file)]},/{file}" for split, file in rows))


def livdet_iris(folder: Path) -> None:
    """Write the folders of 2020 with circles and maps, and the list of 2025 with its truth."""
    random = np.random.default_rng(0)
    attacks = ["Printed", "Textured_Contact", "Electronic_Display", "Prosthetic", "Cadaver"]
    kinds = ["Live" if i % 2 else attacks[i // 2 % 5] for i in range(40)]
    circles = []
    for i, kind in enumerate(kinds):
        x, y, radius = (int(random.integers(*span)) for span in ((240, 400), (200, 280), (90, 120)))
        eye = _eye(x, y, radius, random)
        if kind != "Live":
            evidence = (x - radius // 2, y + radius // 3, x, y + 2 * radius // 3)
            ImageDraw.Draw(eye).rectangle(evidence, fill=230)
            marked = Image.new("L", eye.size)
            ImageDraw.Draw(marked).ellipse(evidence, fill=255)
            _save(marked, folder / "maps" / f"{i:04d}.png")
        _save(eye, folder / "2020" / kind / f"{i:04d}.png")
        if i < 8:
            _save(eye, folder / "2025" / "images" / f"{i}.png")
        circles.append(f"{kind}/{i:04d}.png,{x},{y},{radius}")
    _write(folder / "circles.csv", ["filename,x,y,r", *circles])
    _write(folder / "2025" / "input.csv", ["index,filename", *(f"{i},images/{i}.png" for i in range(8))])
    truth = ("0,0.12,live" if kind == "Live" else "1,-1.0,attack" for kind in kinds[:8])
    _write(folder / "2025" / "truth.csv", truth)


def _draw(folder: Path, files: Iterable[str], seed: int, maps: str = "") -> None:
    """Write noise with a disc (real) or a square (fake) at ``files``, and maps of them below ``maps`` (if given)."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:64, :64]
    for file in files:
        x, y = random.uniform(20, 44, 2)
        disc, square = np.hypot(across - x, down - y), np.maximum(abs(across - x), abs(down - y))
        shape = square if "1_fake" in file or "Spoof" in file else disc
        _save(Image.fromarray((random.integers(60, 110, (64, 64)) + 90 * (shape < 10)).astype(np.uint8)), folder / file)
        if maps:
            blurred = Image.fromarray((255 * np.exp(-0.5 * (disc / 10) ** 2)).astype(np.uint8))
            _save(blurred, folder / maps / Path(file).name)


def _kind(file: str) -> str:
    return "1_fake" if "1_fake" in file else "0_real"


def _eye(x: int, y: int, radius: int, random: np.random.Generator) -> Image.Image:
    down, across = np.mgrid[:480, :640]
    distance = np.hypot(across - x, down - y)
    texture = np.kron(random.integers(-30, 30, (30, 40)), np.ones((16, 16)))
    shades = np.where(distance < radius / 3, 20, np.where(distance < radius, 90 + texture, 170))
    return Image.fromarray(shades.astype(np.uint8))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
