"""Reliance on the salient region in a report: the AUROC on altered images (``lookhere evaluate --reliance``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lookhere.bench.figures import WIDTH, canvas, encode, legend, legend_height, line_styles, one_of
from lookhere.bench.groups import Group
from lookhere.bench.rows import Wanted, group_row, reading_notes
from lookhere.bench.store import Run
from lookhere.bench.table import Column, Table
from lookhere.bench.values import KINDS, subset_title
from lookhere.evaluation.alterations import CONDITIONS, EFFECT
from lookhere.evaluation.folds import fold_means
from lookhere.evaluation.reliance import about_images

RELIANCE = {
    "whole": "whole image",
    "salient_only": "salient only",
    "salient_blurred": "salient blurred",
    "salient_noise": "salient noise",
    "background_same": "background of the same class",
    "background_opposite": "background of another class",
    "control": "own background, moved (control)",
    EFFECT: "same − another",
}
"""Titles of what reliance is measured under."""


def reliance_table(groups: Sequence[Group], split: str, subset: str, place: str = "") -> Table:
    """List the AUROC on altered images (``lookhere evaluate --reliance``) on one subset of a test split."""
    measured = [run for group in groups for run in group.runs if run.reliance is not None]
    about = [run.reliance["splits"][split] for run in measured if run.reliance and split in run.reliance["splits"]]
    columns = []
    for name, title in RELIANCE.items():
        shares = {round(100 * one["share_left"][name]) for one in about if name in one["share_left"]}
        columns.append(Column(title, f"{shares.pop()} % of the image left" if len(shares) == 1 else ""))
    wanted: list[Wanted] = [
        (partial(measure_reliance, split=split, subset=subset, condition=name), "auroc") for name in RELIANCE
    ]
    rows = tuple(group_row(group, groups, wanted) for group in groups)
    notes = list(reading_notes(rows, ["auroc"]))
    images = dict.fromkeys(" · ".join(about_images(one["images"])) for one in about)
    notes += [f"Images measured: {text}." for text in images if len(images) == 1]
    if len(measured) < sum(len(group.runs) for group in groups):
        notes.append("Not measured: lookhere evaluate RUN --reliance measures it.")
    found = [(run.trial.fold, run.reliance) for run in measured if run.reliance is not None]
    options = {json.dumps(one["options"]) for _, one in found}
    data = {(fold, json.dumps(one["data"])) for fold, one in found}
    if len(options) > 1 or len(data) > len(dict(found)):
        notes.append(
            "Not all were measured on the same data with the same options, so their differences are not paired."
        )
    elif any(run.reliance and run.reliance["data"]["sha256"] != run.data_sha256 for run in measured):
        notes.append("Measured on other data than the trainings'.")
    meanings = {RELIANCE[name]: meaning for name, meaning in CONDITIONS.items()}
    meanings[RELIANCE[EFFECT]] = "what the class of the background changes, all else being pasted alike"
    title = f"AUROC on altered images of {place or split}, {subset_title(subset)}"
    return Table(title, tuple(columns), rows, tuple(notes), meanings)


def reliance_figure(groups: Sequence[Group], split: str, subset: str) -> str | None:
    """Draw the AUROC on altered images, a line per condition, a dot per run and a larger one at a group's mean."""
    styles = line_styles(groups)
    names = list(CONDITIONS)
    drawn = False
    with canvas(WIDTH, 0.8 + legend_height(list(styles)) + len(names) * (0.22 + 0.09 * len(groups))) as figure:
        axis = figure.subplots()
        for i, group in enumerate(groups):
            color, marker = styles[group.label]["color"], styles[group.label]["marker"]
            offset = 0.7 * ((i + 0.5) / len(groups) - 0.5)
            for height, name in enumerate(names):
                found = {run.trial: measure_reliance(run, split, subset, name)["value"] for run in group.runs}
                values = {trial: value for trial, value in found.items() if value is not None}
                at = [height + offset] * len(values)
                axis.plot(list(values.values()), at, ".", color=color, alpha=0.55, markersize=4, markeredgewidth=0)
                if means := list(fold_means(values).values()):
                    axis.plot(np.mean(means), at[0], marker, color=color, markersize=6, markeredgewidth=0)
                    drawn = True
        if not drawn:
            return None
        axis.axvline(0.5, color="#999999", linewidth=0.9, linestyle="--")
        axis.set_yticks(range(len(names)), [RELIANCE[name] for name in names])
        axis.set(ylim=(len(names) - 0.5, -0.5))
        axis.set_xlabel(f"AUROC (small dot: one {one_of(groups)}, large: mean; dashed: chance)")
        axis.grid(axis="y", visible=False)
        for height in range(1, len(names)):
            axis.axhline(height - 0.5, color="#e8e8e8", linewidth=0.7)
        legend(figure, {label: style | {"linestyle": ""} for label, style in styles.items()}, marked=True)
        return encode(figure)


def reliance_subsets(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return the test splits and their subsets on which reliance was measured, ``unseen`` first."""
    subsets = {
        (s["split"], s["name"]) for g in groups for run in g.runs for s in (run.reliance or {}).get("subsets", [])
    }
    return sorted(subsets, key=lambda subset: (subset[0], KINDS.index(subset[1])))


def measure_reliance(run: Run, split: str, subset: str, condition: str) -> dict[str, Any]:
    """Return what ``measure`` does, of the AUROC under one of the conditions of ``RELIANCE``."""
    if run.reliance is None:
        why = "not measured"
    else:
        for candidate in run.reliance["subsets"]:
            if (candidate["split"], candidate["name"]) == (split, subset):
                return dict(candidate["metrics"][condition])
        why = f"no {subset} in {split} was measured"
    return {"value": None, "low": None, "high": None, "why": why}
