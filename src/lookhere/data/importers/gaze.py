"""What importers of gaze share: fixations gathered by image and observer, and checked before they become maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from lookhere.data.importers.base import LabelledOptions, Ledger, Sample
from lookhere.data.importers.maps import MapMaker, SigmaUnit, fixation_map, sigma_pixels
from lookhere.data.importers.pixels import image_size
from lookhere.errors import DataError

Size = tuple[int, int]
Scale = tuple[float, float]
Place = Callable[[np.ndarray, np.ndarray, Size], tuple[np.ndarray, np.ndarray, Scale]]
"""x and y (n float64) as the source has them, (width, height) of the image -> x and y in pixels of the image, and how
many of these one pixel of the screen covers, across and down."""


class GazeOptions(LabelledOptions):
    """How fixations become a map."""

    sigma: float = Field(gt=0, allow_inf_nan=False)
    """Standard deviation of the Gaussian around a fixation, in sigma_unit."""
    sigma_unit: SigmaUnit
    """Pixels of the image, fraction of its width, or degrees of visual angle."""
    pixels_per_degree: float | None = Field(None, gt=0)
    """Pixels that one degree covers: of the screen, or of the image where coordinates are the image's."""

    @model_validator(mode="after")
    def _degrees(self) -> GazeOptions:
        if self.sigma_unit == "degrees" and self.pixels_per_degree is None:
            raise ValueError("pixels_per_degree: is required for a sigma in degrees; expected number > 0")
        return self


@dataclass
class Fixations:
    """Fixations by image and observer, as their source has them."""

    found: dict[str, dict[str, dict[str | int, tuple[float, float, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def add(self, image: str, observer: str, event: str, x: float, y: float, duration: float) -> None:
        """Add a fixation, or a row of one: of rows with the same event, that with the longest duration stands."""
        events = self.found[image][observer]
        key = event or len(events)
        if key not in events or events[key][2] < duration:
            events[key] = x, y, duration

    def count(self) -> int:
        """Return how many fixations there are."""
        return sum(len(events) for observers in self.found.values() for events in observers.values())

    def durations(self) -> np.ndarray:
        """Return all durations, float64."""
        observers = (events for observers in self.found.values() for events in observers.values())
        return np.fromiter((event[2] for events in observers for event in events.values()), np.float64)

    def samples(
        self, samples: Sequence[Sample], options: GazeOptions, place: Place, by_duration: bool, ledger: Ledger
    ) -> Iterator[Sample]:
        """Yield the samples with one map for each observer; those that nobody looked at have none.

        Args:
            samples: without maps.
            options: sigma.
            place: maps positions to pixels of the image.
            by_duration: weigh fixations by their duration, or count them.
            ledger: gets what lay outside; a problem if that is more than half, or if everything lies in one pixel.
        """
        outside = 0
        raw, placed = _Range(), _Range()
        for sample in samples:
            makers: dict[str, MapMaker] = {}
            observers = self.found.get(sample.name, {})
            try:
                size = image_size(sample.image) if observers else (0, 0)
            except DataError as error:
                ledger.problems.append(f"{sample.image}: {error}")
                continue
            for observer, events in observers.items():
                x, y, weight = np.array(list(events.values()), np.float64).T
                raw.widen(x, y)
                x, y, scale = place(x, y, size)
                placed.widen(x, y)
                inside = (x >= 0) & (x <= size[0]) & (y >= 0) & (y <= size[1])
                if missed := int((~inside).sum()):
                    outside += missed
                    ledger.drop("fixation outside its image", f"'{sample.name}'", missed)
                if inside.any():
                    weights = weight[inside] if by_duration else 1.0
                    makers[observer] = _maker(x[inside], y[inside], weights, options, scale)
            yield replace(sample, maps=tuple(makers.values()), observers=tuple(makers))
        total = self.count()
        ledger.facts.update(
            fixations=total - outside,
            observers=len({observer for observers in self.found.values() for observer in observers}),
            sigma=options.sigma,
            sigma_unit=options.sigma_unit,
            weighting="duration" if by_duration else "count",
            normalisation="maximum of each observer's map is 1",
        )
        if not total:
            ledger.problems.append(
                f"{options.images}: no fixation of any of its images was found; dropped: {_shown(ledger)}"
            )
        elif 2 * outside > total:
            ledger.problems.append(
                f"{outside} of {total} fixations lie outside their image, with {raw}; is the coordinate space "
                f"right? {_suggestion(raw)}"
            )
        elif total > 1 and placed.high.max() <= 1:
            ledger.problems.append(
                f"all {total} fixations lie in the first pixel of their image, with {raw}; is the coordinate space "
                f"right? {_suggestion(raw)}"
            )


class _Range:
    """The smallest and largest x and y."""

    def __init__(self) -> None:
        self.low, self.high = np.full(2, np.inf), np.full(2, -np.inf)

    def widen(self, x: np.ndarray, y: np.ndarray) -> None:
        self.low = np.minimum(self.low, (x.min(), y.min()))
        self.high = np.maximum(self.high, (x.max(), y.max()))

    def __str__(self) -> str:
        (x0, y0), (x1, y1) = self.low, self.high
        return f"x from {x0:.4g} to {x1:.4g} and y from {y0:.4g} to {y1:.4g}"


def _suggestion(raw: _Range) -> str:
    if raw.high.max() <= 2 and raw.low.min() >= -1:
        return "These look like fractions: image-fraction or screen-fraction."
    return "These look like pixels: image-px, or screen-px with where the image was shown (and from which origin)."


def _shown(ledger: Ledger) -> str:
    return "; ".join(f"{reason}: {entry['count']} ({entry['example']})" for reason, entry in ledger.dropped.items())


def _maker(x: np.ndarray, y: np.ndarray, weight: ArrayLike, options: GazeOptions, scale: Scale) -> MapMaker:
    def make(width: int, height: int) -> np.ndarray:
        per_degree = [options.pixels_per_degree and options.pixels_per_degree * part for part in scale]
        across, down = (sigma_pixels(options.sigma, options.sigma_unit, width, part) for part in per_degree)
        return fixation_map(x, y, weight, across, down)(width, height)

    return make
