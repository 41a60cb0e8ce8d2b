"""Tables as LaTeX with booktabs, to be read in with ``\\input``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lookhere.bench.table import Cell, Table

HEAD = "% Made by `lookhere report`. Needs LaTeX of 2020 or newer and \\usepackage{booktabs}; \\input this file.\n"
FLOATS = 10
"""Tables between two places where LaTeX puts those that wait on pages; it gives up at 18 in old versions."""
APART = "\N{ZERO WIDTH SPACE}"
ESCAPED = {
    APART: "{}",
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_\allowbreak{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl needs another font encoding than the usual one
    "`": r"\textasciigrave{}",
    # After a line's end, TeX reads these as arguments of the line break.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "’": "'",
    "‘": "`",
    "→": r"$\to$",
}


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is; a character that its usual fonts lack becomes its code point, [U+1F441]."""
    apart = re.sub("-(?=-)", f"-{APART}", unicodedata.normalize("NFC", text))  # two hyphens would make a dash
    return "".join(map(_character, apart))


def latex(table: Table, label: str) -> str:
    """Return a table as a floating ``table``; the values of single seeds stand beside it as comments.

    Args:
        table: any table of a report.
        label: what ``\\ref`` calls it.
    """
    count = len(table.columns)
    lines = [
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{escape(table.title)}. {' '.join(map(escape, table.notes))}}}",
        rf"\label{{{label}}}",
        r"\small",
        rf"\begin{{tabular}}{{@{{}}l{'r' * count}@{{}}}}",
        r"\toprule",
        _row(["", *(escape(column.title) for column in table.columns)]),
    ]
    if any(column.note for column in table.columns):
        lines.append(_row(["", *(_note(column.note) for column in table.columns)]))
    lines.append(r"\midrule")
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if len(cell.values) > 1:
                comment = f"{row.label}, {column.title}, {row.trained}: {' '.join(cell.values)}"
                lines.append("% " + " ".join(comment.split()))
        lines.append(_row([escape(row.label), *map(_value, row.cells)]))
        if any(cell.difference for cell in row.cells):
            lines.append(_row(["", *(_note(cell.difference) for cell in row.cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def document(tables: Sequence[tuple[str, Table]]) -> str:
    """Return a file of tables, each with its label, which LaTeX can typeset as a whole."""
    parts = [HEAD]
    for i in range(0, len(tables), FLOATS):
        parts += [latex(table, label) for label, table in tables[i : i + FLOATS]]
        parts += ["\\clearpage\n"] if i + FLOATS < len(tables) else []
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _value(cell: Cell) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)


def _note(text: str) -> str:
    return rf"{{\footnotesize {escape(text)}}}" if text else ""


def _character(c: str) -> str:
    if c in ESCAPED:
        return ESCAPED[c]
    if c.isspace():
        return " "
    if c.isascii():
        return c if c.isprintable() else ""
    # Letters with an accent that every LaTeX since 2018 reads from UTF-8 and sets in its first font encoding.
    base, *marks = list(unicodedata.normalize("NFD", c))
    accents = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030c": "v", "\u0327": "c"}
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in accents:
        return rf"\{accents[marks[0]]}{{{base}}}"
    return f"{{[}}U+{ord(c):04X}{{]}}"
