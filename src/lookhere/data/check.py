"""Checks a data set to its last pixel, before a training is spent on it: ``lookhere check manifest.csv``."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from lookhere.data.cache import Dataset, decode_problems, load_dataset
from lookhere.data.columns import read_splits
from lookhere.data.findings import Finding, counted
from lookhere.data.leakage import repeated_images
from lookhere.data.manifest import Count, DataOptions, Manifest, SaliencyOptions, survey_manifest
from lookhere.data.mapcheck import map_findings, map_statistics, size_findings
from lookhere.data.protocol import ProtocolOptions, apply_protocol
from lookhere.data.table import read_table
from lookhere.errors import DataError

SHOWN = 3


@dataclass(frozen=True, eq=False)
class Summary:
    """What a data set holds, and what is wrong with it."""

    classes: tuple[str, ...]
    positive: str
    positive_reason: str
    counts: list[Count]
    groups: list[int]
    """Number of different groups in each of ``counts``."""
    images: int
    without_map: int
    constant_maps: int
    coverage: float | None
    """Mean over all maps of their mean value, in [0, 1]; None without maps."""
    sha256: str
    """Identity of the data."""
    findings: list[Finding]
    """Errors first, then warnings, then notes."""
    manifest: Manifest

    @property
    def errors(self) -> list[str]:
        """One sentence for each image that must be put right."""
        return [
            f"{self.manifest.where(example.rows[-1], 'image')}: {example.reason}"
            for finding in self.findings
            if finding.severity == "error"
            for example in finding.examples
        ]

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that a person should look at."""
        return [finding.text for finding in self.findings if finding.severity == "warning"]

    @property
    def verdict(self) -> str:
        """What to do now, in one line."""
        warnings = f"; {counted(len(self.warnings), 'warning')} to look at" if self.warnings else ""
        if self.errors:
            return f"not ready: {counted(len(self.errors), 'error')} to put right{warnings}"
        purpose = "training" if len(self.manifest.rows("train")) else "evaluation, not for training: no train rows"
        return f"ready for {purpose}{warnings}"

    def lines(self) -> list[str]:
        """Return the summary as text for a terminal."""
        header = ("split", "label", "type", "images", "maps", "groups")
        cells = [(*map(str, count), str(n)) for count, n in zip(self.counts, self.groups, strict=True)]
        rows = [header, *cells]
        # Columns that say nothing are left out: no types, no groups.
        keep = [
            i for i, name in enumerate(header) if name not in ("type", "groups") or {c[i] for c in cells} - {"", "0"}
        ]
        widths = [max(len(row[i]) for row in rows) for i in keep]
        table = ["  ".join(row[i].ljust(width) for i, width in zip(keep, widths, strict=True)).rstrip() for row in rows]
        coverage = "" if self.coverage is None else f", mean coverage {self.coverage:.1%}"
        found = [
            line
            for finding in self.findings
            for line in [f"{finding.severity}: {finding.name}: {finding.text}", *self._examples(finding)]
        ]
        return [
            *table,
            f"{self.images} images, {self.without_map} without a map, {self.constant_maps} constant maps{coverage}",
            f"{len(self.classes)} classes found: {self._classes()}; positive: {self.positive} ({self.positive_reason})",
            f"sha256: {self.sha256}",
            *found,
            f"verdict: {self.verdict}",
        ]

    def _classes(self) -> str:
        rows = {name: sum(count.images for count in self.counts if count.label == name) for name in self.classes}
        return ", ".join(f"{name} ({counted(n, 'row')})" for name, n in rows.items())

    def _examples(self, finding: Finding) -> list[str]:
        shown = [
            f"    {' and '.join(self.manifest.image[row] for row in example.rows)}: {example.reason}"
            for example in finding.examples[:SHOWN]
        ]
        left = len(finding.examples) - SHOWN
        return [*shown, f"    … and {left:,} more"] if left > 0 else shown

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; a finding names all of its images."""
        image = self.manifest.image
        return {
            "manifest": str(self.manifest.path),
            "verdict": self.verdict,
            "ready": not self.errors,
            "images": self.images,
            "without_map": self.without_map,
            "constant_maps": self.constant_maps,
            "coverage": self.coverage,
            "classes": list(self.classes),
            "positive": self.positive,
            "positive_reason": self.positive_reason,
            "sha256": self.sha256,
            "counts": [{**count._asdict(), "groups": n} for count, n in zip(self.counts, self.groups, strict=True)],
            "findings": [
                {
                    "name": finding.name,
                    "severity": finding.severity,
                    "text": finding.text,
                    "examples": [{"images": [image[i] for i in rows], "reason": why} for rows, why in finding.examples],
                }
                for finding in self.findings
            ],
        }

    def require_ready(self, strict: bool = False) -> None:
        """Raise DataError if there are errors, or (``strict``) warnings."""
        problems = self.errors + (self.warnings if strict else [])
        if problems:
            raise DataError(problems)


def check(
    data: DataOptions, saliency: SaliencyOptions, *, training: bool | None = None, strict: bool = False
) -> Summary:
    """Inspect a data set and insist that it is sound.

    Args:
        data: where the images are.
        saliency: where the maps are.
        training: ask for what training needs; by default if there are train rows.
        strict: take warnings for errors.

    Raises:
        DataError: what ``inspect`` raises and finds: the same pixels in train or val and in another split, under
            whatever name, or with two labels.
    """
    _, summary = inspect(data, saliency, training=training)
    summary.require_ready(strict)
    return summary


def inspect(
    data: DataOptions,
    saliency: SaliencyOptions,
    *,
    training: bool | None = None,
    protocol: ProtocolOptions | None = None,
) -> tuple[Dataset, Summary]:
    """Decode every image and map of a manifest, and return them with a summary of all that was found.

    Args:
        data: where the images are.
        saliency: where the maps are.
        training: ask for what training needs; by default if there are train rows.
        protocol: assigns the splits; by default they are the manifest's.

    Raises:
        DataError: all problems of the manifest and all of its files that cannot be decoded, or what the protocol
            cannot divide.
    """
    protocol = protocol or ProtocolOptions()
    training = _has_train_rows(data) if training is None else training
    manifest, problems = survey_manifest(data, saliency, training=training, need_val=not protocol.makes_val)
    if problems:
        raise DataError([*problems, *decode_problems(data, saliency, manifest)])
    manifest = apply_protocol(manifest, protocol)
    dataset = load_dataset(data, saliency, manifest)
    maps = map_statistics(dataset.maps)
    found = [
        *repeated_images(dataset),
        *(Finding("manifest", "warning", warning) for warning in manifest.warnings),
        *map_findings(dataset, maps),
        *size_findings(dataset),
    ]
    severity = ("error", "warning", "note")
    counts = manifest.counts()
    return dataset, Summary(
        classes=manifest.classes,
        positive=manifest.positive,
        positive_reason=manifest.positive_reason,
        counts=counts,
        groups=_groups(manifest, counts),
        images=len(manifest),
        without_map=int((dataset.map_index < 0).sum()),
        constant_maps=int(maps.constant.sum()),
        coverage=float(maps.coverage.mean()) if len(maps.coverage) else None,
        sha256=dataset.sha256,
        findings=sorted(found, key=lambda finding: severity.index(finding.severity)),
        manifest=manifest,
    )


def _has_train_rows(data: DataOptions) -> bool:
    table = read_table(data.manifest)
    return bool((read_splits(table.columns["split"], data.splits, "", table) == "train").any())


def _groups(manifest: Manifest, counts: list[Count]) -> list[int]:
    members: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    names = [*manifest.classes, ""]  # label -1 is ""
    for split, label, kind, group in zip(
        manifest.split.tolist(), manifest.label.tolist(), manifest.type, manifest.group, strict=True
    ):
        if group:
            members[split, names[label], kind].add(group)
    return [len(members[count.split, count.label, count.type]) for count in counts]
