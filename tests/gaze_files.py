"""Four images, and recordings of the same two fixations on one of them as every eye tracker exports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

W, H = 40, 30
SCREEN = (160, 90)  # an image shown "fit" covers x from 20 to 140, at 3 pixels each
SIGMA = 2.5
POINTS = [(8.0, 6.0, 200.0), (30.0, 20.0, 400.0)]  # x, y in pixels of the image, duration in ms


def write_images(folder: Path) -> None:
    """Write four images, of which ``a/one.png`` is looked at."""
    for kind, name in (("a", "one"), ("a", "two"), ("b", "three"), ("b", "four")):
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (W, H), 90).save(folder / "images" / kind / f"{name}.png")


def read_map(folder: Path) -> np.ndarray:
    """Return the map of ``a/one.png``."""
    return np.asarray(Image.open(folder / "out/maps/a/one.png")) / 65535


def literal(points: Any, size: tuple[int, int] = (W, H), sigma: float = SIGMA) -> np.ndarray:
    """Return the sum of Gaussians, pixel by pixel, divided by its maximum."""
    v, u = np.mgrid[: size[1], : size[0]]
    total = sum(d * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2)) for x, y, d in points)
    return np.asarray(total / np.max(total))


def close(drawn: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(drawn, expected, atol=1 / 65535)


def to_screen(points: Any) -> list[tuple[float, float, float]]:
    return [(20 + 3 * x, 3 * y, d) for x, y, d in points]


def neon(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [f"s,r1,{i},1,2,{d},True,{x},{y}" for i, (x, y, d) in enumerate(POINTS)]
    header = "section id,recording id,fixation id,start timestamp [ns],end timestamp [ns],duration [ms],"
    header += "fixation detected in reference image,fixation x [px],fixation y [px]"
    (folder / "one").mkdir()
    (folder / "one" / "fixations.csv").write_text("\n".join([header, *rows, "s,r1,9,1,2,300,False,1,1"]) + "\n")
    (folder / "one" / "gaze.csv").write_text("not,this\n")
    return folder / "one", {"format": "neon", "coordinates": "image-px", "image_name": "{folder}"}


def core(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "fixations_on_surface_one.csv"
    rows = [f"{t},{i},{d},{x / W},{1 - y / H},True" for i, (x, y, d) in enumerate(POINTS) for t in range(3)]
    text = "world_index,fixation_id,duration,norm_pos_x,norm_pos_y,on_surf"
    file.write_text("\n".join([text, *rows, "9,9,300,0.2,0.2,False"]))
    return file, {"format": "pupil-core", "coordinates": "image-fraction", "image_name": "one"}


def gazepoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "User 1_fixations.csv"
    rows = []
    for i, (x, y, d) in enumerate(to_screen(POINTS)):  # the last row of a fixation has its full duration
        rows += [
            f"0,one.png,{x / 160},{y / 90},{d / 2000},{i + 1},1",
            f"0,one.png,{x / 160},{y / 90},{d / 1000},{i + 1},1",
        ]
    header = "MEDIA_ID,MEDIA_NAME,FPOGX,FPOGY,FPOGD,FPOGID,FPOGV"
    file.write_text("\n".join([header, *rows, "0,one.png,0.5,0.5,0.3,7,0"]))
    return file, {"format": "gazepoint", "coordinates": "screen-fraction", "screen": SCREEN, "shown": "fit"}


def tobii(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "new.tsv"  # the names of newer builds; each recording numbers its events anew
    header = "Participant name\tRecording name\tPresented Stimulus name\tEye movement type\tEye movement type index\t"
    header += "Eye movement event duration [ms]\tFixation point X [DACS px]\tFixation point Y [DACS px]"
    points = enumerate(to_screen(POINTS))
    rows = [f"P\tR{i}\tone\tFixation\t1\t{d}\t{x}\t{y}" for i, (x, y, d) in points for _ in range(3)]
    file.write_text("\n".join([header, *rows, "P\tR1\tone\tSaccade\t2\t20\t\t"]))
    return file, {"format": "tobii", "coordinates": "screen-px", "screen": SCREEN, "shown": "fit"}


def eyelink(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "s1.asc"
    fixes = [
        f"EFIX R   {1000 + i}\t{2000 + i}\t{d}\t  {x}\t  {y}\t  900" for i, (x, y, d) in enumerate(to_screen(POINTS))
    ]
    lines = [
        "** CONVERTED",
        "MSG\t1 GAZE_COORDS 0.00 0.00 159.00 89.00",
        "EFIX R 1 2 300 80 45 900",
        "MSG 500 TRIALID 1",
    ]
    lines += [
        "MSG 990 -3 !V IMGLOAD FILL images/one.png",
        "EFIX R 900 1100 200 80 45 900",
        *fixes,
        "EFIX R 1 2 300 . . .",
    ]
    lines += ["ESACC R 1 2 3", "MSG 3000 TRIAL_RESULT 0", "EFIX R 3100 3200 100 80 45 900"]
    file.write_text("\n".join(lines) + "\n")
    return file, {"format": "eyelink", "coordinates": "screen-px", "shown": "fit"}
