"""What a comparison says in words, from its numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from lookhere.bench.table import Cell, Row, Table, excludes_zero, number


def headline(table: Table, types: Sequence[str], *, alike: bool = True) -> list[str]:
    """Return one sentence for each comparison with a baseline, from the numbers alone.

    Args:
        table: a comparison with a single column.
        types: the types unseen in training that the column is about; none if it is about all images.
        alike: are these the types that every group's training images lack, and not only some group's?
    """
    cells = {row.label: row.cells[0] for row in table.rows}
    if types and not alike:
        lead = f"{table.title}, for the types that a group's own training images do not show, of {', '.join(types)}."
    elif types:
        count = f"{len(types)} type{'' if len(types) == 1 else 's'}"
        lead = f"{table.title}, for the {count} that no training image shows: {', '.join(types)}."
    else:
        lead = f"{table.title}. No type is known to be unseen in training, so this is not an open-set number."
    sentences = [_sentence(row, cells) for row in table.rows if row.baseline]
    return [lead, *(sentences or [f"{label}: {cell.text}." for label, cell in cells.items()])]


def _sentence(row: Row, cells: dict[str, Cell]) -> str:
    start = f"{row.label} reaches {row.cells[0].text}, {row.baseline} {cells[row.baseline].text}."
    paired = row.cells[0].paired
    if paired is None or paired.mean is None:
        return f"{start} They have no seed in common with a defined value, so there is no paired difference."
    difference = number(paired.mean, "auroc", sign=True)
    if paired.low is None or paired.high is None:
        return f"{start} The difference is {difference}; from one seed, nobody can tell whether it is more than chance."
    low, high = (number(end, "auroc", sign=True) for end in (paired.low, paired.high))
    over = f"{paired.n} seeds" + (", each averaged over its folds," if row.folds else "")
    interval = f"{start} Paired over {over} the difference is {difference}, 95 % interval [{low}, {high}]"
    if not excludes_zero(paired):
        return f"{interval}: it contains zero, so these runs do not tell the two apart."
    verdict = "higher" if paired.mean > 0 else "lower"
    chosen = "seeds and test images" if paired.images else "seeds"
    return f"{interval}: {verdict} by more than the choice of {chosen} explains, on this data."
