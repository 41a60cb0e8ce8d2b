"""Tables that compare groups of runs: one structure for Markdown, the terminal and the report's template.

A number is a mean ± standard deviation (n − 1) over seeds. Below it stands the difference from a baseline, paired by
seed, with its 95 % interval: Student's t over seeds, which an AUROC's bootstrap over seeds and test images can only
widen. A number is bold where that interval excludes zero, on either side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import rich.table
from rich.text import Text

from lookhere.bench.resamples import Resamples
from lookhere.bench.store import BASELINE, Group, Run, differing
from lookhere.evaluation.alterations import CONDITIONS, EFFECT
from lookhere.evaluation.comparison import widest
from lookhere.evaluation.evaluate import DEFINITIONS
from lookhere.evaluation.reliance import about_images
from lookhere.evaluation.statistics import Paired, paired_difference, summarise

TITLES = {
    "auroc": "AUROC",
    "eer": "EER",
    "accuracy_at_val": "Accuracy at val",
    "apcer_at_bpcer_1": "APCER @ BPCER 1 %",
    "realised_bpcer_1": "realised BPCER (1 %)",
    "apcer_at_bpcer_5": "APCER @ BPCER 5 %",
    "realised_bpcer_5": "realised BPCER (5 %)",
    "apcer_at_val": "APCER at val",
    "bpcer_at_val": "BPCER at val",
    "detection_rate_at_val": "Detection rate at val",
}
OPERATING_POINTS = (
    "apcer_at_bpcer_1",
    "realised_bpcer_1",
    "apcer_at_bpcer_5",
    "realised_bpcer_5",
    "eer",
    "apcer_at_val",
    "bpcer_at_val",
    "detection_rate_at_val",
)
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
KINDS = ("unseen", "seen", "all", "type")
"""Kinds of subset in the order of the columns; the open-set number comes first."""


@dataclass(frozen=True)
class Cell:
    """One metric of one group on one subset of a test split."""

    text: str
    """Mean ± standard deviation, or "undefined (reason)"."""
    values: tuple[str, ...] = ()
    """The value of every seed, in the order of the group's seeds."""
    difference: str = ""
    """Paired difference from the baseline with its interval; empty for the baseline itself."""
    mean: float | None = None
    paired: Paired | None = None

    @property
    def bold(self) -> bool:
        """Does the interval of the paired difference exclude zero?"""
        return excludes_zero(self.paired)


class Column(NamedTuple):
    """A column's title, and a note of what it counts."""

    title: str
    note: str = ""


class Row(NamedTuple):
    """A group's label and seeds, the label of its baseline ("" for none), and one cell per column."""

    label: str
    seeds: tuple[int, ...]
    baseline: str
    cells: tuple[Cell, ...]


Wanted = tuple[Callable[[Run], dict[str, Any]], str]
"""How to find a cell's value in a run, and the metric that it is, which says how it is written."""


@dataclass(frozen=True)
class Table:
    """Groups in rows, subsets or metrics in columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    definitions: dict[str, str]
    """By title, what each metric of the table is."""

    def markdown(self) -> str:
        """Return the table with its title and notes as GitHub-flavoured Markdown."""
        head = ["", *(_escape(f"{title}\n{note}" if note else title) for title, note in self.columns)]
        lines = [f"**{_escape(self.title)}**", "", _bar(head), _bar(["---"] + ["---:"] * len(self.columns))]
        for row in self.rows:
            cells = [
                "<br>".join(
                    part
                    for part in (
                        f"**{_escape(cell.text)}**" if cell.bold else _escape(cell.text),
                        cell.difference,
                        f"<sub>{' · '.join(cell.values)}</sub>" if len(cell.values) > 1 else "",
                    )
                    if part
                )
                for cell in row.cells
            ]
            lines.append(_bar([f"{_escape(row.label)}<br><sub>{_seeds(row.seeds)}</sub>", *cells]))
        return "\n".join([*lines, "", *(f"{_escape(note)}\n" for note in self._below())])

    def rich(self) -> rich.table.Table:
        """Return the table for a terminal; print it with a ``rich.console.Console``."""
        table = rich.table.Table(title=Text(self.title), caption=Text("\n".join(self._below())), caption_justify="left")
        table.add_column()
        for title, note in self.columns:
            table.add_column(Text(f"{title}\n{note}" if note else title), justify="right")
        for row in self.rows:
            cells = []
            for cell in row.cells:
                text = Text(cell.text, style="bold" if cell.bold else "")
                for line in (cell.difference, " · ".join(cell.values) if len(cell.values) > 1 else ""):
                    text.append(f"\n{line}" if line else "", style="not bold dim")
                cells.append(text)
            table.add_row(Text(f"{row.label}\n").append(_seeds(row.seeds), style="dim"), *cells)
        return table

    def _below(self) -> list[str]:
        return [*self.notes, *(f"{title}: {meaning}." for title, meaning in self.definitions.items())]


def comparison(
    groups: Sequence[Group],
    metric: str = "auroc",
    *,
    split: str | None = None,
    kinds: Sequence[str] = KINDS,
    resamples: Resamples | None = None,
) -> Table:
    """Compare groups in one metric on the subsets of a test split.

    Args:
        groups: what ``store.groups`` returns; rows keep their order.
        metric: a key of an evaluation's metrics, such as ``auroc`` or ``eer``.
        split: the test split; by default the first of ``test_splits``.
        kinds: the kinds of subset that become columns: ``unseen``, ``seen``, ``all``, and ``type`` for each type.
        resamples: of the test images, which widen the intervals of differences in AUROC; without them an interval is
            about other seeds on the same images.
    """
    split = split or next(iter(test_splits(groups)), "test")
    subsets = {(s["kind"], s["name"]): s for group in groups for s in _subsets(group.runs[0], split)}
    unseen = {name for group in groups for name in subset_types(group, split, "unseen")}
    keys = sorted((key for key in subsets if key[0] in kinds), key=lambda key: KINDS.index(key[0]))
    columns = []
    for kind, name in keys:
        counts = {_counts(s) for group in groups for s in _subsets(group.runs[0], split) if s["name"] == name}
        note = counts.pop() if len(counts) == 1 else "counts differ"
        if kind == "type":
            title = name.removeprefix("type: ")
            columns.append(Column(title, f"{'unseen' if title in unseen else 'seen'} · {note}"))
        else:
            columns.append(Column(f"{kind} types" if kind != "all" else "all", note))
    wanted = [_evaluated(split, name, metric) for _, name in keys]
    rows = tuple(_row(group, groups, wanted) for group in groups)
    drawn = None
    if resamples is not None and metric == "auroc":
        drawn = "groups of images" if resamples.clustered(split) else "images"
        rows = tuple(
            row._replace(
                cells=tuple(
                    _widen(cell, group, groups, resamples, split, name)
                    for cell, (_, name) in zip(row.cells, keys, strict=True)
                )
            )
            for row, group in zip(rows, groups, strict=True)
        )
    title = f"{TITLES.get(metric, metric)} on {split}"
    return Table(title, tuple(columns), rows, _notes(rows, [metric], drawn), _definitions([metric]))


def _widen(cell: Cell, group: Group, groups: Sequence[Group], resamples: Resamples, split: str, subset: str) -> Cell:
    """Return a cell whose interval holds that over seeds and images too."""
    baseline = baseline_of(group, groups)
    if cell.paired is None or baseline is None:
        return cell
    paired = widest(cell.paired, resamples.interval(group, baseline, split, subset))
    return replace(cell, paired=paired, difference=difference_text(paired, "auroc"))


def operating_points(groups: Sequence[Group], subset: str, *, split: str | None = None) -> Table:
    """List the error rates of presentation attack detection on one subset (``unseen``, ``all``, …) of a test split.

    A rate that is undefined for all groups, for the same reason, is a note instead of a column.
    """
    split = split or next(iter(test_splits(groups)), "test")
    wanted = [_evaluated(split, subset, metric) for metric in OPERATING_POINTS]
    rows = [_row(group, groups, wanted) for group in groups]
    everywhere = range(len(OPERATING_POINTS))
    lost = [i for i in everywhere if len({row.cells[i].text for row in rows}) == 1 and rows[0].cells[i].mean is None]
    kept = [i for i in everywhere if i not in lost]
    metrics = [OPERATING_POINTS[i] for i in kept]
    notes = (*_notes(rows, metrics), *(f"{TITLES[OPERATING_POINTS[i]]}: {rows[0].cells[i].text}." for i in lost))
    shown = tuple(row._replace(cells=tuple(row.cells[i] for i in kept)) for row in rows)
    title = f"Operating points on {split}, {subset_title(subset)}"
    return Table(title, tuple(Column(TITLES[m]) for m in metrics), shown, notes, _definitions(OPERATING_POINTS))


def reliance(groups: Sequence[Group], split: str, subset: str) -> Table:
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
    rows = tuple(_row(group, groups, wanted) for group in groups)
    notes = list(_notes(rows, ["auroc"]))
    images = dict.fromkeys(" · ".join(about_images(one["images"])) for one in about)
    notes += [f"Images measured: {text}." for text in images if len(images) == 1]
    if len(measured) < sum(len(group.runs) for group in groups):
        notes.append("Not measured: lookhere evaluate RUN --reliance measures it.")
    if len({json.dumps([run.reliance[key] for key in ("data", "options")]) for run in measured if run.reliance}) > 1:
        notes.append(
            "Not all were measured on the same data with the same options, so their differences are not paired."
        )
    elif any(run.reliance and run.reliance["data"]["sha256"] != run.data_sha256 for run in measured):
        notes.append("Measured on other data than the trainings'.")
    meanings = {RELIANCE[name]: meaning for name, meaning in CONDITIONS.items()}
    meanings[RELIANCE[EFFECT]] = "what the class of the background changes, all else being pasted alike"
    title = f"AUROC on altered images of {split}, {subset_title(subset)}"
    return Table(title, tuple(columns), rows, tuple(notes), meanings)


def reliance_subsets(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return the test splits and their subsets on which reliance was measured, ``unseen`` first."""
    subsets = {
        (s["split"], s["name"]) for g in groups for run in g.runs for s in (run.reliance or {}).get("subsets", [])
    }
    return sorted(subsets, key=lambda subset: (subset[0], KINDS.index(subset[1])))


def subset_title(subset: str) -> str:
    """Return a subset's name as titles give it."""
    return f"{subset} types" if subset in ("unseen", "seen") else subset


def test_splits(groups: Sequence[Group]) -> list[str]:
    """Return the names of the test splits that were evaluated, in alphabetical order."""
    splits = {s["split"] for group in groups for s in group.result["evaluation"]["subsets"]}
    return sorted(split for split in splits if split.startswith("test"))


def subset_types(group: Group, split: str, subset: str) -> list[str]:
    """Return the types in a subset of a test split; empty where there is no such subset."""
    return [name for s in _subsets(group.runs[0], split) if s["name"] == subset for name in s["types"]]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """Return what a group is compared with: cross-entropy, or else the first group, on the same data and backbone.

    Of several such groups it is the one whose other options are most like the group's own.
    """
    same = [
        other
        for other in groups
        if other.runs[0].data_sha256 == group.runs[0].data_sha256
        and other.result["backbone"] == group.result["backbone"]
    ]
    found = [other for other in same if other.result["method"] == BASELINE] or same[:1]
    if group in found:
        return None
    return min(found, key=lambda other: len([n for n in differing([group, other]) if not n.startswith("method.")]))


def excludes_zero(paired: Paired | None) -> bool:
    """Is there an interval, and does it lie on one side of zero?"""
    if paired is None or paired.low is None or paired.high is None:
        return False
    return paired.low > 0 or paired.high < 0


def measure(run: Run, split: str, subset: str, metric: str) -> dict[str, Any]:
    """Return ``value``, ``low``, ``high`` and, where there is no value, ``why`` of one metric of a run."""
    for candidate in _subsets(run, split):
        if candidate["name"] == subset and metric in candidate["metrics"]:
            return dict(candidate["metrics"][metric])
    return {"value": None, "low": None, "high": None, "why": f"this run has no {subset} in {split}"}


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


def seed_values(group: Group, split: str, subset: str, metric: str) -> dict[int, float]:
    """Return a metric of an evaluation by seed, for the runs where it is defined."""
    found = {run.seed: measure(run, split, subset, metric)["value"] for run in group.runs}
    return {seed: value for seed, value in found.items() if value is not None}


def number(value: float, metric: str, *, sign: bool = False) -> str:
    """Return an AUROC with three decimals, any other metric in per cent with one (without the unit)."""
    text = f"{value:{'+' if sign else ''}.3f}" if metric == "auroc" else f"{100 * value:{'+' if sign else ''}.1f}"
    return text.replace("-", "−")


def difference_text(paired: Paired, metric: str) -> str:
    """Return a paired difference with its interval: ``+0.031 [−0.004, +0.066]``."""
    if paired.mean is None:
        return "no seed in common"
    mean = number(paired.mean, metric, sign=True)
    if paired.low is None or paired.high is None:
        return f"{mean} [no interval]"
    return f"{mean} [{number(paired.low, metric, sign=True)}, {number(paired.high, metric, sign=True)}]"


def _evaluated(split: str, subset: str, metric: str) -> Wanted:
    return partial(measure, split=split, subset=subset, metric=metric), metric


def _row(group: Group, groups: Sequence[Group], wanted: Sequence[Wanted]) -> Row:
    baseline = baseline_of(group, groups)
    return Row(
        group.label, group.seeds, baseline.label if baseline else "", tuple(_cell(group, baseline, *w) for w in wanted)
    )


def _cell(group: Group, baseline: Group | None, find: Callable[[Run], dict[str, Any]], metric: str) -> Cell:
    found = [find(run) for run in group.runs]
    values = {run.seed: m["value"] for run, m in zip(group.runs, found, strict=True) if m["value"] is not None}
    listed = tuple("undefined" if m["value"] is None else number(m["value"], metric) for m in found)
    reasons = sorted({m.get("why", "no reason given") for m in found if m["value"] is None})
    if not values:
        return Cell(f"undefined ({'; '.join(reasons)})")
    summary = summarise(list(values.values()))
    text = number(summary.mean, metric)
    if summary.sd is not None:
        text += f" ± {number(summary.sd, metric)}"
    elif len(found) == 1 and found[0]["low"] is not None:
        text += f" [{number(found[0]['low'], metric)}, {number(found[0]['high'], metric)}]"
    if reasons:
        text += f" ({len(values)} of {len(found)} seeds; undefined: {'; '.join(reasons)})"
    if baseline is None or metric.startswith("realised"):  # says what a threshold did; nothing to be better at
        return Cell(text, listed, mean=summary.mean)
    others = {run.seed: find(run)["value"] for run in baseline.runs}
    paired = paired_difference(values, {seed: value for seed, value in others.items() if value is not None})
    return Cell(text, listed, difference_text(paired, metric), summary.mean, paired)


def _notes(rows: Sequence[Row], metrics: Sequence[str], drawn: str | None = None) -> tuple[str, ...]:
    """Say how to read a table; ``drawn``: what the bootstrap of its differences draws, besides seeds."""
    notes = ["Mean ± standard deviation (n − 1) over seeds, every seed's value below."]
    if any(len(row.seeds) == 1 for row in rows):
        notes.append("With a single seed: value [95 % bootstrap interval over images].")
    decides = "Student's t over seeds" + (f", widened to hold the bootstrap's over seeds and {drawn}" if drawn else "")
    if baselines := sorted({row.baseline for row in rows} - {""}):
        notes.append(
            f"Second line: paired difference from {' or '.join(baselines)} and its 95 % interval ({decides})"
            + ("" if metrics == ["auroc"] else ", in percentage points")
            + "; bold where it excludes zero."
        )
    if any(metric != "auroc" for metric in metrics):
        notes.append("In per cent; “at val”: at the threshold fixed on the val split.")
    return tuple(notes)


def _definitions(metrics: Sequence[str]) -> dict[str, str]:
    return {TITLES.get(metric, metric): DEFINITIONS[metric] for metric in metrics if metric in DEFINITIONS}


def _subsets(run: Run, split: str) -> list[dict[str, Any]]:
    return [subset for subset in run.result["evaluation"]["subsets"] if subset["split"] == split]


def _counts(subset: dict[str, Any]) -> str:
    return f"{subset['positives']:,} / {subset['negatives']:,}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", text).replace("\n", "<br>")


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
