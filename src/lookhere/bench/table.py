"""A table of groups: one structure for Markdown, the terminal, LaTeX and the report's template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import rich.table
from rich.text import Text

from lookhere.evaluation.statistics import Paired


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
    """A group's label and seeds, the label of its baseline ("" for none), one cell per column, and folds, if any."""

    label: str
    seeds: tuple[int, ...]
    baseline: str
    cells: tuple[Cell, ...]
    folds: tuple[int, ...] = ()

    @property
    def trained(self) -> str:
        """The seeds and folds in words."""
        return trained(self.seeds, self.folds)


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
            lines.append(_bar([f"{_escape(row.label)}<br><sub>{row.trained}</sub>", *cells]))
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
            table.add_row(Text(f"{row.label}\n").append(row.trained, style="dim"), *cells)
        return table

    def _below(self) -> list[str]:
        return [*self.notes, *(f"{title}: {meaning}." for title, meaning in self.definitions.items())]


def excludes_zero(paired: Paired | None) -> bool:
    """Is there an interval, and does it lie on one side of zero?"""
    if paired is None or paired.low is None or paired.high is None:
        return False
    return paired.low > 0 or paired.high < 0


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


def trained(seeds: Sequence[int], folds: Sequence[int] = ()) -> str:
    """Return seeds and folds in words: ``seeds 0, 1; folds 0, 1, 2``."""
    parts = [(name, numbers) for name, numbers in (("seed", seeds), ("fold", folds)) if numbers]
    return "; ".join(f"{name}{'s' if len(many) > 1 else ''} {', '.join(map(str, many))}" for name, many in parts)


def _escape(text: str) -> str:
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", text).replace("\n", "<br>")


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
