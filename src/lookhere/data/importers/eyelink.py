"""Reads the fixations of an EyeLink recording, converted from .edf to .asc by SR Research's edf2asc."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lookhere.data.importers.base import Ledger
from lookhere.data.importers.gaze_tables import Fixation
from lookhere.errors import DataError, UsageError

SHOWN = r"!V IMGLOAD (?:FILL|CENTER|TOP_LEFT) (.+?)(?: -?[\d.]+)*$"
"""The message by which Experiment Builder tells Data Viewer which image is on the screen."""


def eyelink_fixations(
    path: Path, message: str, eye: Literal["left", "right"] | None, ledger: Ledger
) -> Iterator[Fixation]:
    """Yield the fixations of an .asc file; those without an image are counted in the ledger.

    ``EFIX <L|R> <start> <end> <duration> <x> <y> <pupil>``, in ms and pixels of the screen; ``MSG <time> <text>`` says
    when an image is shown, and ``TRIALID`` and ``TRIAL_RESULT`` that it is not any more.

    Args:
        path: .asc file.
        message: regular expression whose first group is the image in a message.
        eye: of a recording of both eyes, the one to be read.
        ledger: gets what was left out.

    Raises:
        DataError: the file cannot be read.
        UsageError: it holds both eyes and ``eye`` is not given.
    """
    pattern = re.compile(message)
    image, since, eyes = "", 0.0, set()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line, text in enumerate(file, 1):
                if text.startswith("MSG"):
                    _, time, content = [*text.rstrip("\n").split(maxsplit=2), "", ""][:3]
                    content = re.sub(r"^-?\d+ ", "", content)  # an offset in ms may precede the text
                    if content.startswith(("TRIALID", "TRIAL_RESULT")):
                        image = ""
                    if found := pattern.search(content):
                        image, since = found[1], _number(time)
                elif text.startswith("EFIX"):
                    fields = text.split()
                    if len(fields) < 7:
                        ledger.problems.append(f"{path}, row {line}: {text.strip()!r}; expected EFIX and 6 or 7 fields")
                        continue
                    eyes.add(fields[1])
                    start, duration, x, y = (_number(fields[i]) for i in (2, 4, 5, 6))
                    if eye and fields[1] != eye[0].upper():
                        ledger.drop("fixation of the other eye", f"{path}, row {line}")
                    elif not image:
                        ledger.drop("fixation while no image was shown", f"{path}, row {line}")
                    elif start < since:
                        ledger.drop("fixation that began before its image was shown", f"{path}, row {line}")
                    else:
                        yield Fixation(image, "", "", x, y, duration)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(eyes) > 1 and eye is None:
        raise UsageError(f"eye: is required, since {path} holds both eyes; expected left|right")
    if not eyes:
        ledger.problems.append(f"{path}: no line that starts with EFIX; expected the output of edf2asc with events")


def eyelink_screen(path: Path) -> tuple[float, float] | None:
    """Return width and height of the screen in pixels from the message GAZE_COORDS, or None without one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            found = re.search(r"(?:GAZE|DISPLAY)_COORDS\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)", text)
            if text.startswith("MSG") and found:
                left, top, right, bottom = map(float, found.groups())
                return right - left + 1, bottom - top + 1
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # EyeLink writes "." for what it lost
        return math.nan
