"""Tables that compare groups of runs: one metric on several subsets, and error rates on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lookhere.bench.groups import Group
from lookhere.bench.resamples import Resamples
from lookhere.bench.rows import definitions, evaluated, group_row, reading_notes
from lookhere.bench.table import Cell, Column, Table, difference_text
from lookhere.bench.values import KINDS, TITLES, baseline_of, subset_title, subsets_of, test_splits
from lookhere.evaluation.comparison import widest

if TYPE_CHECKING:
    from lookhere.bench.material import Material

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


def comparison(
    groups: Sequence[Group],
    metric: str = "auroc",
    *,
    split: str | None = None,
    kinds: Sequence[str] = KINDS,
    resamples: Resamples | None = None,
    place: str = "",
) -> Table:
    """Compare groups in one metric on the subsets of a test split.

    Args:
        groups: what ``store.groups`` returns; rows keep their order.
        metric: a key of an evaluation's metrics, such as ``auroc`` or ``eer``.
        split: the test split; by default the first of ``test_splits``.
        kinds: the kinds of subset that become columns: ``unseen``, ``seen``, ``all``, and ``type`` for each type.
        resamples: of the test images, which widen the intervals of differences in AUROC; without them an interval is
            about other seeds on the same images.
        place: what the title calls the test split; by default its name.
    """
    split = split or next(iter(test_splits(groups)), "test")
    tested = [subsets_of(run, split) for group in groups for run in group.firsts]
    subsets = dict.fromkeys((s["kind"], s["name"]) for several in tested for s in several)
    keys = sorted((key for key in subsets if key[0] in kinds), key=lambda key: KINDS.index(key[0]))
    columns = []
    for kind, name in keys:
        counts = {_counts(group, split, name) for group in groups} - {""}
        note = counts.pop() if len(counts) == 1 else "counts differ"
        if kind == "type":
            title = name.removeprefix("type: ")
            columns.append(Column(title, f"{_seen(title, tested)} · {note}"))
        else:
            columns.append(Column(f"{kind} types" if kind != "all" else "all", note))
    wanted = [evaluated(split, name, metric) for _, name in keys]
    rows = tuple(group_row(group, groups, wanted) for group in groups)
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
    title = f"{TITLES.get(metric, metric)} on {place or split}"
    return Table(title, tuple(columns), rows, reading_notes(rows, [metric], drawn), definitions([metric]))


def operating_points(groups: Sequence[Group], subset: str, *, split: str | None = None, place: str = "") -> Table:
    """List the error rates of presentation attack detection on one subset (``unseen``, ``all``, …) of a test split.

    A rate that is undefined for all groups, for the same reason, is a note instead of a column.
    """
    split = split or next(iter(test_splits(groups)), "test")
    wanted = [evaluated(split, subset, metric) for metric in OPERATING_POINTS]
    rows = [group_row(group, groups, wanted) for group in groups]
    everywhere = range(len(OPERATING_POINTS))
    lost = [i for i in everywhere if len({row.cells[i].text for row in rows}) == 1 and rows[0].cells[i].mean is None]
    kept = [i for i in everywhere if i not in lost]
    metrics = [OPERATING_POINTS[i] for i in kept]
    notes = (*reading_notes(rows, metrics), *(f"{TITLES[OPERATING_POINTS[i]]}: {rows[0].cells[i].text}." for i in lost))
    shown = tuple(row._replace(cells=tuple(row.cells[i] for i in kept)) for row in rows)
    title = f"Operating points on {place or split}, {subset_title(subset)}"
    return Table(title, tuple(Column(TITLES[m]) for m in metrics), shown, notes, definitions(OPERATING_POINTS))


def overview(parts: Sequence[Material], split: str) -> Table:
    """Compare groups in AUROC across data sets: a column for each, of its unseen types, or of all where none is known.

    Args:
        parts: the runs on each data set by themselves.
        split: the test split.
    """
    tables = {}
    for part in parts:
        if split in part.splits:
            kinds = [part.subset(split)]
            tables[part.name] = comparison(part.groups, split=split, kinds=kinds, resamples=part.resamples)
    found = {name: {row.label: row for row in table.rows} for name, table in tables.items()}
    first = {label: row for rows in reversed(found.values()) for label, row in rows.items()}
    labels = dict.fromkeys(label for rows in found.values() for label in rows)
    none = Cell("–")
    rows = tuple(
        first[label]._replace(cells=tuple(rows[label].cells[0] if label in rows else none for rows in found.values()))
        for label in labels
    )
    columns = [Column(name, " · ".join(filter(None, table.columns[0]))) for name, table in tables.items()]
    drawn = "images, or groups of images" if any(part.resamples.clustered(split) for part in parts) else "images"
    title = f"AUROC on {split} of each data set"
    return Table(title, tuple(columns), rows, reading_notes(rows, ["auroc"], drawn), definitions(["auroc"]))


def _widen(cell: Cell, group: Group, groups: Sequence[Group], resamples: Resamples, split: str, subset: str) -> Cell:
    """Return a cell whose interval holds that over seeds and images too."""
    baseline = baseline_of(group, groups)
    if cell.paired is None or baseline is None:
        return cell
    paired = widest(cell.paired, resamples.interval(group, baseline, split, subset))
    return replace(cell, paired=paired, difference=difference_text(paired, "auroc"))


def _counts(group: Group, split: str, subset: str) -> str:
    """Return how many positives and negatives a subset has, in all folds together; blank where there is none."""
    found = [s for run in group.firsts for s in subsets_of(run, split) if s["name"] == subset]
    positives, negatives = (sum(s[name] for s in found) for name in ("positives", "negatives"))
    return f"{positives:,} / {negatives:,}" if found else ""


def _seen(type_: str, tested: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Say whether training images show a type, from the subsets of trainings on different data."""
    having = [several for several in tested if any(s["name"] == f"type: {type_}" for s in several)]
    unseen = [any(s["name"] == "unseen" and type_ in s["types"] for s in several) for several in having]
    return "unseen" if all(unseen) else "unseen by some" if any(unseen) else "seen"
