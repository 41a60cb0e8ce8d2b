"""What every form of a report is made of: groups of finished runs, and what is read from their predictions, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lookhere.bench.groups import Group, groups
from lookhere.bench.images import Evidence, read_evidence
from lookhere.bench.published import published_tables
from lookhere.bench.reliance import reliance_subsets
from lookhere.bench.resamples import Resamples
from lookhere.bench.store import Found, find_runs
from lookhere.bench.table import Table
from lookhere.bench.values import subset_types, test_splits
from lookhere.progress import Track

DRAWN = 40
"""The most groups of a data set that figures can tell apart (`figures.MARKERS`), and that a page has pictures of."""


@dataclass(frozen=True)
class Material:
    """Finished runs, gathered for a report."""

    found: Found
    groups: list[Group]
    beside: list[Table]
    """Published numbers beside those measured."""
    name: str = ""
    """Of the data set, where there are several and these are the runs on one of them."""
    whole: Material | None = field(default=None, repr=False)
    """The runs on all of them."""
    plan: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The resolved plan that names the runs, if there is one."""

    @classmethod
    def gather(cls, paths: Iterable[Path], plan: Mapping[str, Any] | None = None) -> Material:
        """Read all runs at or below ``paths``; see ``report.write_report``."""
        found, plan = find_runs(paths), plan or {}
        order = {run["name"]: place for place, run in enumerate(plan.get("runs", ()))}
        found.runs.sort(key=lambda run: order.get(run.folder.name, len(order)))
        beside = published_tables(plan.get("published", ()), {run.folder.name: run for run in found.runs})
        return cls(found, groups(found.runs, rows=_rows(plan)), beside, plan=plan)

    @cached_property
    def parts(self) -> list[Material]:
        """The runs on each data set by itself, labelled without its name; all runs where there is only one."""
        names = dict.fromkeys(group.data_name for group in self.groups)
        if len(names) < 2:
            return [self]
        runs = [run for group in self.groups for run in group.runs]
        unnamed = groups(runs, tell_data=False, rows=_rows(self.plan))
        return [Material(self.found, [g for g in unnamed if g.data_name == n], [], n, self, self.plan) for n in names]

    def place(self, split: str) -> str:
        """Return what titles call a test split of this data."""
        return f"{self.name}, {split}" if self.name else split

    @property
    def drawn(self) -> list[Group]:
        """The groups that figures and pictures show: none of a data set with more than `DRAWN`."""
        if len(self.parts) > 1:
            names = {part.name for part in self.parts if part.drawn}
            return [group for group in self.groups if group.data_name in names]
        return self.groups if len(self.groups) <= DRAWN else []

    @cached_property
    def evidence(self) -> dict[str, Evidence]:
        """By a group's label, what its predictions tell."""
        if self.whole is not None:
            known = {group.result["group"]: self.whole.evidence[group.label] for group in self.whole.groups}
            return {group.label: known[group.result["group"]] for group in self.groups}
        evidence = {}
        with Track("Reading predictions", len(self.groups)) as track:
            for group in self.groups:
                evidence[group.label] = read_evidence(group)
                track.advance()
        return evidence

    @cached_property
    def resamples(self) -> Resamples:
        """Of the test images, for pairs of groups."""
        return Resamples(self.groups, {label: one.tested for label, one in self.evidence.items()})

    @property
    def splits(self) -> list[str]:
        """The test splits that were evaluated."""
        return test_splits(self.groups)

    def unseen(self, split: str) -> list[str]:
        """Return the types of a test split that a group's training images do not show, in alphabetical order."""
        return sorted({name for group in self.groups for name in subset_types(group, split, "unseen")})

    def unseen_alike(self, split: str) -> bool:
        """Are the same types unseen by the training images of every group?"""
        return len({frozenset(subset_types(group, split, "unseen")) for group in self.groups}) < 2

    def subset(self, split: str) -> str:
        """Return the subset that a report's main numbers on a test split are about: ``unseen`` types, or else all."""
        return "unseen" if self.unseen(split) else "all"

    @property
    def elsewhere(self) -> list[tuple[str, str]]:
        """Splits and subsets on which reliance was measured, of test splits that no run was evaluated on."""
        return [where for where in reliance_subsets(self.groups) if where[0] not in self.splits]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Return what a reader must know of each group beside its options, by the group's label."""
        told = (
            (group.label, note) for group in self.groups for run in group.runs for note in run.result.get("notes", ())
        )
        return list(dict.fromkeys(told))


def _rows(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return by the name of a run folder what a plan calls its group."""
    return {run["name"]: run["row"] for run in plan.get("runs", ()) if "row" in run}
