"""A synthetic iris presentation attack set, so that the whole pipeline can be tried without a licence or a download.

Real iris sets are lent under signed agreements and cannot be shipped. This one is drawn from what is known of the
domain, and is not to be tuned until one method wins: its numbers say how software behaves, nothing about real irises.

Why it is as it is:

- **Types.** Two attack types are in training and three only in the test split, because attacks unlike any seen before
  are the field's open problem (LivDet-Iris 2020 gave no training set at all). ``attacks.py`` tells what each shows.
- **Confounder.** Laboratories collect attacks with other cameras and lamps than live eyes, so detectors learn the
  camera and fail elsewhere. Sensor B differs from A in noise, fixed pattern, illumination, vignetting and crop. In
  training and validation it takes 90 % of each attack type and 10 % of the bona fide images (``EXCEPTION``), in the
  test split half of every type. Validation is collected as training is, so it cannot warn of the shortcut.
- **Maps.** Experts mark the evidence by hand. A simulated annotator paints the region with a soft brush, a little
  beside it, leaves a part out and sometimes marks something else; a map is the mean of one to three of them. Human
  maps are dear, so that only a fraction of the training images may have one; the others' are left blank.
- **Subjects.** Every subject appears as bona fide and as each attack type of the split, so that no trait of a person
  tells the class, and no subject crosses splits.

An image depends on the seed, its split and its number, never on how many others are made.
"""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from lookhere.data.attacks import ATTACKS, BONA_FIDE, present
from lookhere.data.eye import Array, Subject
from lookhere.errors import UsageError
from lookhere.progress import Track

KNOWN_ATTACKS = ("textured contact lens", "paper printout")
EXCEPTION = 10  # in train and val, every tenth image of a type comes from the other class's sensor
# One subject's presentations in each split; the order is repeated, subject after subject.
SITTINGS = {
    "train": (BONA_FIDE, BONA_FIDE, *KNOWN_ATTACKS),
    "val": (BONA_FIDE, BONA_FIDE, *KNOWN_ATTACKS),
    "test": (BONA_FIDE, BONA_FIDE, BONA_FIDE, *ATTACKS),
}
FIELDS = ("image", "label", "split", "saliency", "type", "group")
README = """# Synthetic iris set

Every picture here is drawn by lookhere; none shows a person. Results on this set say how software behaves, and nothing
about real irises or real attacks.

"""
DRAWING = 1  # raise it whenever the same arguments would give other pictures


@dataclass(frozen=True)
class Sensor:
    """How a camera and its lamp see: ranges that each picture draws from."""

    scale: tuple[float, float]  # iris radius over half the image's side: the crop
    noise: tuple[float, float]  # standard deviation at white, in grey levels of [0, 1]
    banding: tuple[float, float]  # standard deviation of the column offsets
    lamp: float  # direction that the light comes from, radians from right towards down
    gradient: tuple[float, float]  # half the relative difference from the lit to the dark edge
    vignetting: tuple[float, float]  # relative loss of light in the corners

    def expose(self, image: Array, rng: np.random.Generator) -> Array:
        """Return ``image`` (h w) as this sensor records it, in [0, 1]."""
        y, x = (2 * np.indices(image.shape, dtype=np.float32) + 1) / len(image) - 1
        lamp = self.lamp + rng.normal(0, 0.35)
        light = 1 + rng.uniform(*self.gradient) * (math.cos(lamp) * x + math.sin(lamp) * y)
        light = light * (1 - rng.uniform(*self.vignetting) * (x**2 + y**2) / 2)
        lit = gaussian_filter(image * light, 0.4)  # the lens: no edge is sharper than the optics
        shot = rng.uniform(*self.noise) * np.sqrt(0.3 + 0.7 * lit)
        bands = rng.uniform(*self.banding) * rng.standard_normal(image.shape[1], dtype=np.float32)
        return np.clip(lit + shot * rng.standard_normal(image.shape, dtype=np.float32) + bands, 0, 1)


SENSORS = {
    "A": Sensor((0.44, 0.52), (0.008, 0.016), (0.0, 0.002), math.pi, (0.04, 0.14), (0.0, 0.12)),
    "B": Sensor((0.49, 0.57), (0.020, 0.034), (0.003, 0.009), 0.0, (0.10, 0.24), (0.15, 0.32)),
}


def make_iris(
    out: Path,
    *,
    seed: int = 0,
    size: int = 128,
    train: int = 400,
    val: int = 120,
    test: int = 600,
    maps: float = 1.0,
) -> Path:
    """Write the synthetic iris set: images, annotators' maps, a manifest and a README. A finished set is left alone.

    The same arguments give the same bytes (with the same versions of NumPy, SciPy and Pillow).

    Args:
        out: folder to write to; new, empty, or holding a set of the same arguments.
        seed: of everything random, at least 0.
        size: side of the square 8-bit grey images in pixels, 96 to 224.
        train: number of training images; a quarter of them of each known attack type, the rest bona fide.
        val: number of validation images, likewise.
        test: number of test images; three of eight bona fide, one of each of the five attack types.
        maps: fraction of the training images that have a map; a smaller fraction is a subset of a larger one.

    Returns:
        The path of the manifest, ``out/manifest.csv``.

    Raises:
        UsageError: an argument out of range, or ``out`` holds something else.
    """
    counts = {"train": train, "val": val, "test": test}
    _check(seed, size, counts, maps)
    manifest = out / "manifest.csv"
    try:
        ours = _claim(out, _readme(seed, size, counts, maps))
        if not (ours and manifest.is_file()):
            _draw(manifest, seed, size, counts, maps)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; name another folder") from error
    return manifest


def _draw(manifest: Path, seed: int, size: int, counts: dict[str, int], maps: float) -> None:
    out = manifest.parent
    for folder in ("images", "maps"):
        (out / folder).mkdir(exist_ok=True)
    order = np.random.default_rng([seed, 2]).permutation(counts["train"])
    unmapped = set(order[round(maps * len(order)) :].tolist())
    rows = []
    with Track("drawing irises", sum(counts.values())) as track:
        for split, count in counts.items():
            for number in range(count):
                image, saliency, row = _presentation(seed, split, number, size)
                _save(image, out / row["image"])
                if split == "train" and number in unmapped:
                    row["saliency"] = ""
                else:
                    _save(saliency, out / row["saliency"])
                rows.append(row)
                track.advance()
    text = io.StringIO()
    table = csv.DictWriter(text, FIELDS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _write(manifest, text.getvalue())  # last, so that an interrupted set has no manifest and is drawn again


def _presentation(seed: int, split: str, number: int, size: int) -> tuple[Array, Array, dict[str, str]]:
    """Return one image, its map and its row of the manifest."""
    cycle = SITTINGS[split]
    person, slot = divmod(number, len(cycle))
    kind = cycle[slot]
    where = list(SITTINGS).index(split)
    subject = _subject(seed, where, person)
    rng = np.random.default_rng([seed, 1, where, number])
    sensor = SENSORS[_sensor(split, kind, person, slot)]
    image, evidence = present(kind, subject, rng, size, rng.uniform(*sensor.scale))
    image = sensor.expose(image, rng)
    saliency = np.mean([annotate(evidence, rng) for _ in range(rng.integers(1, 4))], axis=0)
    name = f"{split}-{number:05d}.png"
    row = {
        "image": f"images/{name}",
        "label": BONA_FIDE if kind == BONA_FIDE else "attack",
        "split": split,
        "saliency": f"maps/{name}",
        "type": kind,
        "group": f"{split}-{person:04d}",
    }
    return image, saliency, row


@lru_cache(maxsize=1)
def _subject(seed: int, where: int, person: int) -> Subject:
    return Subject.draw(np.random.default_rng([seed, 0, where, person]))


def _sensor(split: str, kind: str, person: int, slot: int) -> str:
    """Return the sensor of a presentation: counted out rather than drawn, so that the stated shares hold exactly."""
    if split == "test":
        return "AB"[(person + slot) % 2]
    exception = (person + 3 * slot) % EXCEPTION == 0
    return "B" if (kind != BONA_FIDE) != exception else "A"


def annotate(evidence: Array, rng: np.random.Generator) -> Array:
    """Return what one person paints for ``evidence`` (h w, in [0, 1]): offset, in part, and with marks outside."""
    size = len(evidence)
    y, x = np.indices(evidence.shape, dtype=np.float32) / size
    offset = rng.normal(0, 0.03, 2)
    painted = shift(evidence, offset * size, order=1)
    total = painted.sum()
    cx, cy = (x * painted).sum() / total, (y * painted).sum() / total
    if rng.random() < 0.7:  # a sector is missed
        missed = np.cos(np.arctan2(y - cy, x - cx) - rng.uniform(-np.pi, np.pi)) > np.cos(rng.uniform(0.3, 1.1))
        painted = painted * ~missed
    for _ in range(rng.choice(3, p=[0.5, 0.35, 0.15])):  # a stray stroke of the brush
        bx, by, width, height = *rng.uniform(0.1, 0.9, 2), *rng.uniform(0.03, 0.09, 2)
        painted = np.maximum(painted, ((x - bx) / width) ** 2 + ((y - by) / height) ** 2 < 1)
    return gaussian_filter(painted, rng.uniform(0.012, 0.03) * size)


def _check(seed: int, size: int, counts: dict[str, int], maps: float) -> None:
    wrong = []
    if seed < 0:
        wrong.append(f"seed is {seed}, expected at least 0")
    if not 96 <= size <= 224:
        wrong.append(f"size is {size}, expected 96 to 224 pixels")
    for split, count in counts.items():
        least = len(SITTINGS[split])
        if count < least:
            wrong.append(f"{split} is {count}, expected at least {least} images, one subject with every type")
    if not 0 <= maps <= 1:
        wrong.append(f"maps is {maps}, expected a fraction from 0 to 1")
    if wrong:
        raise UsageError("iris set: " + "; ".join(wrong))


def _readme(seed: int, size: int, counts: dict[str, int], maps: float) -> str:
    arguments = {"drawing": DRAWING, "seed": seed, "size": size, **counts, "maps": float(maps)}
    return README + "".join(f"    {name} = {value}\n" for name, value in arguments.items())


def _claim(out: Path, readme: str) -> bool:
    """Make ``out`` this set's folder, marked by its README; return whether it already was."""
    mark = out / "README.md"
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == readme:
        return True
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} holds something other than this iris set; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(mark, readme)
    return False


def _write(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


def _save(image: Array, path: Path) -> None:
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(path)
