"""A tiny recording in the layout of Tobii Pro Lab: one row for each sample, UTF-16, tabs, decimal commas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCREEN = (1920, 1080)
SIZE = (48, 36)
HEADER = (
    "Recording timestamp [ms]",
    "Participant name",
    "Recording name",
    "Presented Stimulus name",
    "Eye movement type",
    "Eye movement type index",
    "Gaze event duration [ms]",
    "Fixation point X",
    "Fixation point Y",
    "Fixation point X [MCS norm]",
    "Fixation point Y [MCS norm]",
)


def write_example(folder: Path) -> None:
    """Write ``images/<class>/<n>.png`` and ``recordings/<participant>.tsv`` of two participants.

    The images were shown as large as they fit the screen; both participants look at the bright spot, and away once.
    """
    random = np.random.default_rng(0)
    spots = []
    for i in range(12):
        kind, (x, y) = ("bonafide", "attack")[i % 2], random.integers((10, 10), (38, 26))
        image = Image.fromarray(random.integers(60, 120, SIZE[::-1], np.uint8))
        if kind == "attack":
            ImageDraw.Draw(image).ellipse([int(x) - 4, int(y) - 4, int(x) + 4, int(y) + 4], fill=230)
        place = folder / "images" / kind
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:02d}.png")
        spots.append((f"{i:02d}.png", x, y))
    (folder / "recordings").mkdir()
    for participant in ("P01", "P02"):
        lines = ["\t".join(HEADER)]
        time = index = 0
        for name, x, y in [("Eyetracker Calibration", 24, 18), *spots]:
            for kind, duration in (("Fixation", 180), ("Saccade", 30), ("Fixation", 320), ("EyesNotFound", 40)):
                index += 1
                at = random.normal((x, y), 1.0) if duration > 200 else random.uniform((0, 0), SIZE)
                lines += [_row(time + t, participant, name, kind, index, duration, at) for t in range(0, duration, 10)]
                time += duration
        (folder / "recordings" / f"{participant}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-16")


def _row(time: int, participant: str, name: str, kind: str, index: int, duration: int, at: np.ndarray) -> str:
    position = [""] * 4
    if kind == "Fixation":
        factor = min(SCREEN[0] / SIZE[0], SCREEN[1] / SIZE[1])
        corner = (np.array(SCREEN) - factor * np.array(SIZE)) / 2
        numbers = [*(corner + factor * at), *(at / SIZE)]
        position = [f"{number:.4f}".replace(".", ",") for number in numbers]
    return "\t".join([str(time), participant, "Recording1", name, kind, str(index), str(duration), *position])
