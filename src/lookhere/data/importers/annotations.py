"""What the importers of annotation tools share: which image an annotation speaks of, and what was marked in it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import field_validator

from lookhere.data.importers.base import LabelledOptions, Ledger, Sample, image_lookup, labelled_images
from lookhere.data.importers.maps import MapMaker, union
from lookhere.data.importers.parse import whole
from lookhere.data.table import counted
from lookhere.errors import DataError, nearest

ASPECT = 0.02
"""How much the aspect ratios of an annotation and of its image may differ."""


class AnnotationOptions(LabelledOptions):
    """How regions become maps."""

    labels: tuple[str, ...] = ()
    """Labels (categories) whose regions are salient; by default all of them."""
    invalid: Literal["error", "drop"] = "error"
    """An annotation of which something cannot be read: an error, or it is left out as a whole and counted."""

    @field_validator("labels", mode="before")
    @classmethod
    def _several(cls, labels: object) -> object:
        return (labels,) if isinstance(labels, str) else labels


@dataclass
class Marks:
    """What one annotator marked in one image, ``size`` = (width, height) as the annotation file tells it."""

    gallery: Gallery
    observer: str
    where: str
    size: tuple[int, int] | None
    makers: list[MapMaker] = field(default_factory=list)
    whole: bool = True
    """Could all regions be read? If not, what is left would pass for what the annotator found salient."""

    def add(self, kind: str, labels: Iterable[str], draw: Callable[[], MapMaker], where: str = "") -> None:
        """Add a region, unless its labels are not wanted.

        Args:
            kind: polygon, rectangle, ellipse, mask: for the provenance.
            labels: of the region.
            draw: returns the map of the region, or raises DataError or ValueError with what is wrong with it.
            where: file and id, for messages; by default those of the annotation.
        """
        gallery, where, labels = self.gallery, where or self.where, list(labels)
        gallery.labels.update(labels or [""])
        if gallery.options.labels and not set(labels) & set(gallery.options.labels):
            gallery.ledger.drop("region with a label that is not among the wanted", where)
            return
        try:
            self.makers.append(draw())
        except (DataError, ValueError) as error:
            gallery.invalid(where, f"{kind}: {error}")
            self.whole = False
        else:
            gallery.kinds[kind] += 1

    def map(self) -> MapMaker:
        """Return the union of the regions, drawn at the size that was annotated."""
        make, size = union(*self.makers), self.size

        def resized(width: int, height: int) -> np.ndarray:
            if size is None or size == (width, height):
                return make(width, height)
            if abs(size[0] * height / (size[1] * width) - 1) > ASPECT:
                raise DataError(
                    f"{self.where}: annotated at {size[0]} x {size[1]} pixels, but the image has {width} x {height}; "
                    "expected the image that was annotated, the same way up"
                )
            drawn = Image.fromarray(make(*size)).resize((width, height), Image.Resampling.BILINEAR)
            return np.clip(np.asarray(drawn), 0, 1)

        return resized


class Gallery:
    """The labelled images, and what each annotator marked in them."""

    def __init__(self, options: AnnotationOptions, ledger: Ledger) -> None:
        self.options, self.ledger = options, ledger
        self.samples = labelled_images(options, ledger)
        self.lookup = image_lookup(self.samples, options)
        self.rows = {sample.name: row for row, sample in enumerate(self.samples)}
        self.marked: dict[int, dict[Hashable, Marks]] = defaultdict(dict)
        self.found = False
        self.missing: list[str] = []
        self.elsewhere: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()

    def invalid(self, where: str, what: str) -> None:
        """Note something that cannot be read, as ``options.invalid`` says."""
        if self.options.invalid == "drop":
            self.ledger.drop("annotation that cannot be read", f"{where}: {what}")
        else:
            self.ledger.problems.append(f"{where}: {what}")

    def row(self, where: str, *names: str) -> int | None:
        """Return the row of the image that has one of ``names``, or None, with the reason noted.

        Args:
            where: file and id, for messages.
            names: tried in turn; the last is the name proper.
        """
        try:
            found = next((sample for name in names if (sample := self.lookup.find(name))), None)
        except DataError as error:
            self.invalid(where, str(error))
            return None
        name = names[-1]
        if found is None:
            self.missing.append(name)
            self.ledger.drop("annotation of an image that is not among the images", f"{where}: '{name}'")
            return None
        self.found = True
        folder = PurePosixPath(name.replace("\\", "/")).parent.name
        if folder and folder != Path(os.path.abspath(found.image)).parent.name:
            self.elsewhere.append(f"'{name}' as {found.image}")
        return self.rows[found.name]

    def marks(
        self, row: int, annotator: Hashable, observer: str, where: str, size: tuple[Any, Any] | None = None
    ) -> Marks | None:
        """Return where to add the regions of an annotator of an image, or None if the size cannot be right.

        Args:
            row: of the image.
            annotator: whoever is told apart from the others of this image.
            observer: the annotator's name, the same in all images.
            where: file and id, for messages.
            size: width and height of the image as the annotation file tells them, None if it does not.
        """
        limit = Image.MAX_IMAGE_PIXELS
        try:
            known = None if size is None else (whole(size[0], "image width"), whole(size[1], "image height"))
        except DataError as error:
            self.invalid(where, str(error))
            return None
        if known and (min(known) < 1 or (limit and known[0] * known[1] > limit)):
            self.invalid(where, f"an image of {known[0]} x {known[1]} pixels; expected 1 to {limit:,} pixels in all")
            return None
        return self.marked[row].setdefault(annotator, Marks(self, observer, where, known))

    def finish(self) -> Iterator[Sample]:
        """Yield all images with their maps; who marked nothing counts where another annotator marked something."""
        ledger = self.ledger
        ledger.facts.update(regions=dict(self.kinds.most_common()), region_labels=dict(self.labels.most_common()))
        if self.missing and not self.found:
            hint = nearest(PurePosixPath(self.missing[0]).name, (sample.image.name for sample in self.samples))
            what = f"no annotated image is here ({len(self.missing)} are not), such as '{self.missing[0]}'{hint}"
            ledger.problems.append(f"{self.options.images}: {what}")
        for label in sorted(set(self.options.labels) - self.labels.keys()):
            known = ", ".join(f"'{name}'" for name in self.labels) or "none"
            ledger.problems.append(f"labels: no region has '{label}'; found {known}{nearest(label, self.labels)}")
        if self.elsewhere:
            what = f"{counted(len(self.elsewhere), 'annotated image')} found by name in another folder"
            ledger.warnings.append(f"{what}, such as {self.elsewhere[0]}")
        for row, sample in enumerate(self.samples):
            annotators = [marks for marks in self.marked.get(row, {}).values() if marks.whole]
            if annotators and not any(marks.makers for marks in annotators):
                ledger.drop("annotated image without a region (it gets no map)", sample.name)
                annotators = []
            observers = tuple(marks.observer for marks in annotators)
            yield replace(sample, maps=tuple(marks.map() for marks in annotators), observers=observers)
