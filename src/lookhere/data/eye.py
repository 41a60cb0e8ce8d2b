"""Drawing a near-infrared-like eye, in grey: a person's iris, lids and lashes, and one picture's pose of them.

Lengths are in iris radii and x points right, y down, from the centre of the iris, so that everything scales with the
eye and not with the picture. Images, layers and masks are float arrays ``h w``, nominally in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates

Array = NDArray[np.floating[Any]]

SUPERSAMPLING = 3  # of the lashes, the only thing drawn with a pen
FINEST_PERIOD = 3.0  # in pixels; a finer printed or lit grid would alias into plain noise


def within(distance: Array, softness: float) -> Array:
    """Return 1 where ``distance`` is negative, 0 where positive, with a linear edge ``softness`` wide between."""
    return np.clip(0.5 - distance / softness, 0, 1)


def mix(below: Array, above: Array | float, alpha: Array | float) -> Array:
    """Return ``above`` painted over ``below`` with opacity ``alpha``."""
    return below + alpha * (above - below)


def patches(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Return smooth noise (size, size) of about unit variance with features one ``cells``-th of the side."""
    grid = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Subject:
    """What stays the same in every picture of one person's eye."""

    texture: Array  # polar: rows from pupil to limbus, columns around the iris
    iris: float
    skin: float
    sclera: float
    pupil: float
    opening: float
    bend: float
    lashes: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subject:
        """Draw a person: iris texture, tones, lids and lashes."""
        return cls(
            texture=_polar_texture(rng),
            iris=rng.uniform(0.36, 0.52),
            skin=rng.uniform(0.50, 0.68),
            sclera=rng.uniform(0.62, 0.74),
            pupil=rng.uniform(0.30, 0.46),
            opening=rng.uniform(0.82, 1.05),
            bend=rng.uniform(0.15, 0.23),
            lashes=int(rng.integers(22, 40)),
        )


def _polar_texture(rng: np.random.Generator, rows: int = 32, columns: int = 256) -> Array:
    """Radial fibres, dark crypts, concentric furrows and the collarette, of about unit variance."""

    def noise(radial: float, angular: float) -> Array:
        grain = gaussian_filter(
            rng.standard_normal((rows, columns), dtype=np.float32), (radial, angular), mode=("nearest", "wrap")
        )
        return grain / grain.std()

    rho = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    collarette = 0.34 + 0.05 * noise(rows, 5)[:1]
    ridge = np.exp(-(((rho - collarette) / 0.06) ** 2))
    crypts = np.clip(noise(2.5, 3.5) - 1.0, 0, None) * np.exp(-(((rho - collarette - 0.1) / 0.25) ** 2))
    furrows = np.cos(2 * np.pi * rng.uniform(3, 5) * rho + noise(4, 12)) * (rho > collarette + 0.15)
    return 0.6 * noise(6, 1.5) + 0.35 * noise(1.5, 1.5) + 0.9 * ridge - 1.6 * crypts + 0.25 * furrows


@dataclass
class Eye:
    """One presentation: where everything lies, and the layers that an attack may alter before they are put together."""

    subject: Subject
    radius: float  # of the iris, in pixels
    x: Array
    y: Array
    pupil: float
    opening: float
    gaze: float  # how far the lids' middle lies right of the iris
    tilt: float
    ball: Array = field(init=False)
    glints: Array = field(init=False)
    lashes: Array = field(init=False)
    skin: Array = field(init=False)
    evidence: Array = field(init=False)  # where an expert sees what the eye is

    def __post_init__(self) -> None:
        self.r, self.angle = np.hypot(self.x, self.y), np.arctan2(self.y, self.x)
        self.pixel = 1 / self.radius
        self.upper = self.lid(-1, self.x) - self.y  # height above the upper lid's edge, negative in the open eye
        self.lower = self.y - self.lid(1, self.x)
        self.opened = within(self.upper, 2 * self.pixel) * within(self.lower, 2 * self.pixel)

    def lid(self, side: int, x: Array) -> Array:
        """Return the height ``y`` of the edge of the upper (``side`` -1) or lower (1) lid at ``x``."""
        reach, bend = (0.92, 1.0) if side < 0 else (1.02, 0.8)  # the upper lid usually covers the top of the iris
        x = x - self.gaze
        return side * (reach * self.opening - bend * self.subject.bend * x**2) + self.tilt * x

    def pitch(self, low: float, high: float, rng: np.random.Generator) -> float:
        """Draw the period of a printed or lit grid, no finer than the picture can hold."""
        return max(rng.uniform(low, high), FINEST_PERIOD * self.pixel)


def look(subject: Subject, rng: np.random.Generator, size: int, scale: float) -> Eye:
    """Pose a subject's eye for one picture and draw its layers, as a genuine eye's.

    Args:
        subject: whose eye it is.
        rng: source of everything that varies from picture to picture.
        size: side of the image in pixels.
        scale: radius of the iris as a fraction of half the side.
    """
    radius = scale * size / 2
    steps = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / radius
    x, y = np.meshgrid(steps - rng.normal(0, 0.1), steps - rng.normal(0, 0.1))
    eye = Eye(
        subject,
        radius,
        x,
        y,
        pupil=min(max(subject.pupil + rng.normal(0, 0.05), 0.22), 0.6),
        opening=subject.opening * rng.uniform(0.85, 1.1),
        gaze=rng.normal(0, 0.12),
        tilt=rng.normal(0, 0.06),
    )
    eye.ball = _eyeball(eye, rng)
    eye.glints = _glints(eye, rng)
    eye.lashes = _lashes(eye, rng)
    eye.skin = _skin(eye, rng)
    eye.evidence = within(eye.r - 1, 0.1) * within(eye.pupil - eye.r, 0.1) * eye.opened
    return eye


def _eyeball(eye: Eye, rng: np.random.Generator) -> Array:
    rows, columns = eye.subject.texture.shape
    rho = np.clip((eye.r - eye.pupil) / (1 - eye.pupil), 0, 1)
    turn = (eye.angle + rng.normal(0, 0.12)) / (2 * np.pi) % 1
    fibres = map_coordinates(
        eye.subject.texture, [rho * (rows - 1), turn * columns], order=1, mode="grid-wrap", output=np.float32
    )
    iris = eye.subject.iris + 0.055 * fibres - 0.10 * rho**4
    sclera = eye.subject.sclera - 0.035 * eye.x**2 + 0.02 * patches(rng, len(rho), 8)
    ball = mix(sclera, iris, within(eye.r - 1, 0.14))
    return mix(ball, rng.uniform(0.07, 0.14), within(eye.r - eye.pupil, 2 * eye.pixel))


def _glints(eye: Eye, rng: np.random.Generator) -> Array:
    """The corneal reflections of one or two lamps."""
    glints = np.zeros_like(eye.x)
    x, y = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
    for side in (1, -1)[: rng.integers(1, 3)]:
        u, v = eye.x - side * x, eye.y - y - rng.uniform(-0.05, 0.05)
        glints = np.maximum(glints, within(np.hypot(u, v) - rng.uniform(0.06, 0.1), 2 * eye.pixel))
    return glints


def _lashes(eye: Eye, rng: np.random.Generator) -> Array:
    """Opacity of the lashes: curved, tapering strokes rooted on both lids, drawn larger and averaged down."""
    sheet = Image.new("L", (len(eye.x) * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(sheet)
    unit = eye.radius * SUPERSAMPLING
    along = np.linspace(0, 1, 5)
    for side, count in ((-1, eye.subject.lashes), (1, eye.subject.lashes // 2)):
        root = eye.gaze + np.sort(rng.uniform(-1.8, 1.8, (count, 1)), axis=0)
        length = rng.uniform(0.35, 0.7, (count, 1)) if side < 0 else rng.uniform(0.15, 0.3, (count, 1))
        lean = 0.4 * root + rng.normal(0, 0.2, (count, 1))
        # Upper lashes first hang over the eye, then curl up; lower ones simply point down.
        course = 0.6 * along - 1.3 * along**2 if side < 0 else along
        x = (root + length * lean * along**1.3 - eye.x[0, 0]) * unit
        y = (eye.lid(side, root) + length * course - eye.y[0, 0]) * unit
        for stroke in np.stack([x, y], axis=2):
            ink, width = int(rng.integers(130, 230)), unit * rng.uniform(0.02, 0.04)
            points = [(float(u), float(v)) for u, v in stroke]
            pen.line(points[:3], fill=ink, width=max(1, round(width)))
            pen.line(points[2:], fill=ink, width=max(1, round(width / 2)))
    return np.asarray(sheet.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _skin(eye: Eye, rng: np.random.Generator) -> Array:
    size = len(eye.x)
    crease = 0.16 * np.exp(-(((eye.upper - rng.uniform(0.3, 0.5)) / 0.09) ** 2))
    fold = 0.06 * np.exp(-(((eye.lower - rng.uniform(0.3, 0.5)) / 0.15) ** 2))
    wet = 0.08 * np.exp(-(((eye.lower - 0.03) / 0.06) ** 2))
    return eye.subject.skin + 0.05 * patches(rng, size, 3) + 0.012 * patches(rng, size, 24) - crease - fold + wet


def assemble(eye: Eye) -> Array:
    """Return the picture that the layers make together; the upper lid casts its shadow on the eyeball."""
    shadow = 1 - 0.35 * np.exp(np.minimum(eye.upper, 0) / 0.18)
    ball = mix(eye.ball * shadow, 0.97, eye.glints)
    return mix(mix(eye.skin, ball, eye.opened), 0.18, eye.lashes)
