"""Faces with human heat maps (CYBORG): real or synthetic, one training list, and one test list for each source.

Layout: ``train/original_data/{0_real,1_fake}``, ``train/heatmaps`` (8-bit grey, the names of the images), ``val``,
``test``; the lists come with the code. Each test list has images of one class from one source (FFHQ, CelebA-HQ, or one
of six generators), so an AUROC needs several of them: they are joined into one test, with the list's name as type.

Source: Boyd, Tinsley, Bowyer, Czajka, "CYBORG: Blending Human Saliency Into the Loss Improves Deep Learning-Based
Synthetic Face Detection", WACV 2023.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookhere.data.importers import list_examples
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.dnetpad import ListOptions, read_lists
from lookhere.errors import UsageError

HEATMAPS = "train/heatmaps"


class CyborgOptions(ListOptions):
    """Options of the CYBORG faces; ``maps`` is by default ``train/heatmaps`` below the root."""


def read(paths: Sequence[Path], options: CyborgOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the faces of the training list and of all test lists."""
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give the lists, such as original.csv ffhq.csv progan.csv")
    root = options.root or paths[0].parent
    if options.maps is None and (root / HEATMAPS).is_dir():
        options = options.model_copy(update={"maps": root / HEATMAPS})
    samples = list(read_lists(paths, options, "val", ledger))
    _warn_of_tests([sample for sample in samples if sample.split == "test"], ledger)
    yield from samples


def _warn_of_tests(tests: Sequence[Sample], ledger: Ledger) -> None:
    formats: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in tests:
        formats[sample.label][sample.image.suffix.lower()] += 1
    ledger.facts["formats_of_test_images"] = {label: dict(count) for label, count in sorted(formats.items())}
    if len(formats) == 1:
        ledger.warnings.append(
            f"the test lists hold {next(iter(formats))} images only: no AUROC without the other class"
        )
    # CelebA-HQ is JPEG and the rest PNG: compression alone can tell them apart.
    for label, count in sorted(formats.items()):
        others = {suffix for other, counts in formats.items() if other != label for suffix in counts}
        if alone := sorted(set(count) - others) if others else []:
            share = sum(count[suffix] for suffix in alone)
            ledger.warnings.append(
                f"{share} of {sum(count.values())} test images of {label} are {', '.join(alone)}, which no other class "
                "has: compression may tell the classes apart"
            )


IMPORTERS = (
    Importer(
        name="cyborg",
        title="CYBORG: real and synthetic faces with human heat maps",
        request=(
            "Ask the Computer Vision Research Lab of the University of Notre Dame, as https://github.com/CVRL/CYBORG "
            "says; the lists come with that code."
        ),
        licence="Research use, by agreement with the University of Notre Dame; the images keep their sources' terms.",
        Options=CyborgOptions,
        read=read,
        example=list_examples.cyborg,
        example_arguments=(
            "{folder}/original.csv",
            "{folder}/ffhq.csv",
            "{folder}/celeba-hq.csv",
            "{folder}/progan.csv",
            "{folder}/stylegan2.csv",
        ),
    ),
)
