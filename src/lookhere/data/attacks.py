"""Eyes as they are presented to a sensor, bona fide or as an attack, with the evidence that an expert would mark.

What each attack shows follows the categories of the LivDet-Iris competitions (2013 to 2025): printed dots and strokes
of a cosmetic lens; the raster, flat contrast and edge of a print, often with the pupil cut out so that a live cornea
glints through; the regular spokes and hard limbus of a prosthesis or doll's eye; the pixel grid and glare of a screen;
the cloudy, wrinkled cornea of an eye after death. All of it lies in or near the iris, where experts look, and is often
faint. Lengths are in iris radii, as in ``eye.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from lookhere.data.eye import Array, Eye, Subject, assemble, look, mix, patches, within

TURN = 2 * np.pi


def _turned(eye: Eye, angle: float) -> tuple[Array, Array]:
    """Return the coordinates along and across the direction ``angle``."""
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    return cosine * eye.x + sine * eye.y, cosine * eye.y - sine * eye.x


def _ridge(distance: Array, width: float) -> Array:
    """Return a soft line: 1 where ``distance`` is 0, falling off over ``width`` on both sides."""
    return np.exp(-((distance / width) ** 2))


def _textured_contact_lens(eye: Eye, rng: np.random.Generator) -> Array:
    x, y = eye.x - rng.uniform(-0.06, 0.06), eye.y - rng.uniform(-0.06, 0.06)  # a lens never sits quite centred
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    warp = 0.5 * patches(rng, len(x), 10)
    pitch = eye.pitch(0.12, 0.20, rng)
    spokes = round(TURN * 0.75 / pitch)
    style = rng.choice(["dots", "strokes", "rings of dots"])
    if style == "dots":
        wave = np.cos(TURN * x / pitch + warp) * np.cos(TURN * y / pitch + warp)
    elif style == "strokes":
        wave = np.cos(spokes * angle + 4 * r + 2 * warp) - 0.3 + 0.6 * warp
    else:
        wave = np.cos(spokes * angle + warp) * np.cos(TURN * r / pitch + warp)
    # The print's inner edge is jagged, and does not follow the pupil as it dilates.
    inner = rng.uniform(0.42, 0.58) + 0.04 * np.cos(int(rng.integers(14, 24)) * angle) + 0.03 * warp
    outer = rng.uniform(0.92, 1.02)
    tone = rng.uniform(0.15, 0.25) if rng.random() < 0.5 else rng.uniform(0.69, 0.79)
    ink = rng.uniform(0.2, 0.9) * np.clip(0.5 + 2 * wave, 0, 1)
    eye.ball = mix(eye.ball, tone, ink * within(inner - r, 0.05) * within(r - outer, 0.05))
    if rng.random() < 0.6:  # the rim of the lens on the sclera
        eye.ball = eye.ball + rng.uniform(-0.14, 0.14) * _ridge(r - rng.uniform(1.12, 1.25), 0.03)
    eye.evidence = within(inner - r, 0.1) * within(r - outer, 0.1) * eye.opened
    return assemble(eye)


def _paper_printout(eye: Eye, rng: np.random.Generator) -> Array:
    picture = assemble(eye)
    tilt = rng.normal(0, 0.08)
    u, v = _turned(eye, tilt)
    edge = np.maximum(np.abs(u) - rng.uniform(1.35, 2.2), np.abs(v) - rng.uniform(1.05, 1.4))
    pitch = eye.pitch(0.13, 0.20, rng)
    a, b = _turned(
        eye, tilt + float(rng.choice([0.26, 0.79, 1.31]))
    )  # the customary screen angles: 15, 45 and 75 degrees
    raster = np.cos(TURN * a / pitch) * np.cos(TURN * b / pitch)
    printed = rng.uniform(0.16, 0.3) + rng.uniform(0.5, 0.75) * picture
    printed = printed + rng.uniform(0.03, 0.18) * raster * np.clip(1.3 - printed, 0, 1)  # little ink, small dots
    if rng.random() < 0.5:
        hole = within(eye.r - 0.95 * eye.pupil, 1.5 * eye.pixel)
        printed = mix(mix(printed, 0.05, hole), 0.97, eye.glints * hole)
    rim = _ridge(edge, 0.04)
    eye.evidence = np.maximum(within(eye.r - 1.15, 0.2), 0.6 * rim) * within(edge - 0.1, 0.1)
    return mix(picture, printed, within(edge, 2 * eye.pixel)) + rng.uniform(-0.15, 0.15) * rim


def _artificial_eye(eye: Eye, rng: np.random.Generator) -> Array:
    rho = np.clip((eye.r - eye.pupil) / (1 - eye.pupil), 0, 1)
    spokes = round(TURN * 0.75 / eye.pitch(0.10, 0.20, rng))
    pattern = np.cos(spokes * eye.angle) + 0.6 * np.cos(TURN * rng.uniform(2, 4) * rho)
    iris = rng.uniform(0.36, 0.56) + rng.uniform(0.03, 0.09) * pattern - 0.25 * np.clip(5 * rho - 4, 0, 1)
    sclera = np.full_like(eye.x, eye.subject.sclera + 0.06)
    made = mix(mix(sclera, iris, within(eye.r - 1, 2 * eye.pixel)), 0.06, within(eye.r - eye.pupil, 1.5 * eye.pixel))
    eye.ball = mix(eye.ball, made, rng.uniform(0.65, 1.0))
    # Glass and acrylic mirror the lamp as an arc inside the limbus, and often as a large patch.
    u, v = eye.x - rng.uniform(-0.4, 0.4), eye.y - rng.uniform(-0.5, 0.1)
    patch = within((u / rng.uniform(0.12, 0.26)) ** 4 + (v / rng.uniform(0.1, 0.2)) ** 4 - 1, 1.0)
    arc = _ridge(eye.r - 0.8, 0.05) * np.clip(2 * np.cos(eye.angle - rng.uniform(0.3, 2.8)) - 1.2, 0, 1)
    eye.glints = np.maximum(patch if rng.random() < 0.6 else eye.glints, rng.uniform(0.2, 0.9) * arc)
    eye.lashes = rng.uniform(0, 0.25) * eye.lashes
    eye.evidence = within(eye.r - 1.05, 0.1) * eye.opened
    return assemble(eye)


def _electronic_display(eye: Eye, rng: np.random.Generator) -> Array:
    picture = assemble(eye)
    focus = np.exp(-((eye.r / rng.uniform(1.0, 1.5)) ** 4))  # the rest of the screen is too blurred to show pixels
    pitch = eye.pitch(0.13, 0.19, rng)
    u, v = _turned(eye, rng.normal(0, 0.05))
    columns, rows = np.cos(TURN * u / pitch), np.cos(TURN * v / pitch / float(rng.choice([1.0, 1.5])))
    gaps = rng.uniform(0.08, 0.28) * (1 - 0.6 * columns - 0.4 * rows)
    shown = np.clip(picture, 0, 1) ** rng.uniform(0.65, 0.9) * (1 - gaps)
    lean = rng.uniform(-1.2, 1.2)
    glare = _ridge(eye.x + lean * eye.y - rng.uniform(-0.6, 0.6), rng.uniform(0.2, 0.4)) * focus
    eye.evidence = np.maximum(within(eye.r - 1.15, 0.2), 0.8 * glare) * focus
    return mix(mix(picture, shown, focus), 0.95, rng.uniform(0.05, 0.4) * glare)


def _post_mortem(eye: Eye, rng: np.random.Generator) -> Array:
    size, strength = len(eye.x), rng.uniform(0.4, 1.0)
    cornea = gaussian_filter(eye.ball, strength * rng.uniform(0.06, 0.12) * eye.radius)
    cloud = strength * np.clip(0.42 + 0.25 * patches(rng, size, 7), 0, 0.85)
    cornea = mix(cornea, rng.uniform(0.50, 0.62), cloud)
    for _ in range(rng.integers(3, 7)):
        along, across = _turned(eye, rng.uniform(0, np.pi))
        bow = rng.uniform(-0.25, 0.25) * along + 0.06 * np.sin(rng.uniform(3, 7) * along)
        crest = across - rng.uniform(-0.8, 0.8) - bow
        cornea = cornea + strength * rng.uniform(1.5, 3) * crest * _ridge(crest, 0.07)  # one side lit, one in shadow
    eye.ball = mix(eye.ball, cornea, within(eye.r - 1.05, 0.3))
    # A dry cornea breaks the reflection up, or loses it.
    broken = np.clip(2 * patches(rng, size, 14), 0, 1) * np.exp(-8 * ((eye.x - 0.1) ** 2 + 3 * eye.y**2))
    eye.glints = 0.9 * broken if rng.random() < 0.5 else 0 * broken
    eye.evidence = within(eye.r - 1.05, 0.2) * eye.opened
    return assemble(eye)


BONA_FIDE = "bona fide"
# Each turns a genuine eye into its picture as that attack, and sets the eye's evidence.
ATTACKS: dict[str, Callable[[Eye, np.random.Generator], Array]] = {
    "textured contact lens": _textured_contact_lens,
    "paper printout": _paper_printout,
    "artificial eye": _artificial_eye,
    "electronic display": _electronic_display,
    "post-mortem": _post_mortem,
}


def present(kind: str, subject: Subject, rng: np.random.Generator, size: int, scale: float) -> tuple[Array, Array]:
    """Draw one presentation, as it looks before any sensor.

    Args:
        kind: ``BONA_FIDE`` or a key of ``ATTACKS``.
        subject: whose eye it is, or whose it imitates.
        rng: source of everything that varies from picture to picture; one in the same state gives the same eye
            under another attack.
        size: side of the image in pixels.
        scale: radius of the iris as a fraction of half the side.

    Returns:
        The image and the evidence, each (size, size) in [0, 1].
    """
    eye = look(subject, rng, size, scale)
    image = assemble(eye) if kind == BONA_FIDE else ATTACKS[kind](eye, rng)
    return np.clip(image, 0, 1), np.clip(eye.evidence, 0, 1)
