"""Print the tables of docs/results.md from a study: open-set AUROC beside reliance, a table for each data set.

    python condense.py table1.toml study

Rows have the names and the order of the plan. Only what the plan lists, and is finished, is shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lookhere.bench.material import Material
from lookhere.bench.plan import read_plan
from lookhere.bench.reliance import reliance_table
from lookhere.bench.status import read_plan_json
from lookhere.bench.study import prepare
from lookhere.bench.table import Table
from lookhere.bench.tables import comparison

COLUMNS = ("salient only", "background of the same class", "background of another class", "same − another")


def condensed(part: Material, split: str = "test") -> Table:
    """Return the table of one data set."""
    subset = part.subset(split)
    whole = comparison(part.groups, split=split, kinds=[subset], resamples=part.resamples)
    altered = reliance_table(part.groups, split, subset)
    kept = [index for index, column in enumerate(altered.columns) if column.title in COLUMNS]
    rows = [
        row._replace(cells=(*row.cells, *(other.cells[index] for index in kept)))
        for row, other in zip(whole.rows, altered.rows, strict=True)
    ]
    columns = (*whole.columns, *(altered.columns[index] for index in kept))
    return Table(part.name or part.groups[0].data_name, columns, tuple(rows), (), {})


def main(plan: Path, study: Path) -> None:
    """Print the tables of a plan, whose trainings are in a study's folder, maybe with those of other plans."""
    prepare(read_plan(plan), study)  # the folder's plan.json is then this plan's
    resolved = read_plan_json(study)
    folders = [study / "runs" / run["name"] for run in resolved["runs"]]
    material = Material.gather([folder for folder in folders if (folder / "result.json").exists()], resolved)
    for part in material.parts:
        print(condensed(part).markdown())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
