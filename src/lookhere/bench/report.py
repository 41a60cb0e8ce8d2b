"""The report: finished runs compared in one HTML file that needs no network, or as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lookhere.bench import exports, latex
from lookhere.bench.material import Material
from lookhere.bench.page import page_content
from lookhere.bench.reliance import reliance_subsets, reliance_table
from lookhere.bench.significance import significance_table
from lookhere.bench.tables import comparison, operating_points, overview
from lookhere.bench.values import TITLES
from lookhere.errors import UsageError
from lookhere.training.folder import write_text


def write_report(paths: Iterable[Path], out: Path, *, plan: Mapping[str, Any] | None = None) -> Path:
    """Write the report of all runs at or below ``paths`` to the file ``out``, whole or not at all, and return it.

    The name's ending says what it gets: ``.html`` the whole page; ``.md`` the tables; ``.tex`` a table for each metric,
    for booktabs; ``.csv`` every number of every run, and a second file, ``…_summary.csv``, the means and differences.

    Of a study, ``plan`` is the content of its ``plan.json``: groups have its names and its order, and all but the last
    show its published numbers beside those measured.

    Raises:
        UsageError: no run found, another ending, or a place that cannot be written.
        DataError: damaged files of finished runs.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out}: a folder; expected the name of an HTML file, such as {out / 'report.html'}")
    if out.suffix.lower() not in MAKERS:
        raise UsageError(f"{out}: expected a name that ends in {', '.join(MAKERS)}")
    texts = MAKERS[out.suffix.lower()](Material.gather(paths, plan))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for addition, text in reversed(texts.items()):  # the file that was asked for is written last
            write_text(out.with_stem(out.stem + addition), text)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
    return out


def _page(material: Material) -> dict[str, str]:
    environment = Environment(
        loader=PackageLoader("lookhere", "bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return {"": environment.get_template("report.html.j2").render(page_content(material))}


def _markdown(material: Material) -> dict[str, str]:
    tables = [overview(material.parts, split) for split in material.splits if len(material.parts) > 1]
    for part in material.parts:
        groups, resamples = part.groups, part.resamples
        measured = reliance_subsets(groups)
        for split in part.splits:
            subset, place = part.subset(split), part.place(split)
            tables.append(comparison(groups, split=split, resamples=resamples, place=place))
            tables += [reliance_table(groups, *where, place) for where in measured if where[0] == split]
            points = operating_points(groups, subset, split=split, place=place)
            notes = (f"{label}: {note}" for label, note in part.notes)
            tables.append(replace(points, notes=(*points.notes, *notes)))
            tests = significance_table(groups, split, subset, resamples, place)
            tables += [tests] if tests else []
        tables += [reliance_table(groups, *where, part.place(where[0])) for where in part.elsewhere]
    return {"": "\n".join(table.markdown() for table in (*tables, *material.beside))}


def _latex(material: Material) -> dict[str, str]:
    made = []
    if len(material.parts) > 1:
        made = [(_label("tab", split, "overview"), overview(material.parts, split)) for split in material.splits]
    for part in material.parts:
        for split in part.splits:
            about: dict[str, Any] = {"split": split, "resamples": part.resamples, "place": part.place(split)}
            for metric in TITLES:
                for suffix, kinds in (("", ("unseen", "seen", "all")), (", by type", ("type",))):
                    table = comparison(part.groups, metric, kinds=kinds, **about)
                    if any(cell.mean is not None for row in table.rows for cell in row.cells):
                        label = _label("tab", part.name, split, metric, suffix and "types")
                        made.append((label, replace(table, title=table.title + suffix)))
            if tests := significance_table(part.groups, split, part.subset(split), part.resamples, part.place(split)):
                made.append((_label("tab", part.name, split, "tests"), tests))
    made += [(f"tab:published-{i}", table) for i, table in enumerate(material.beside, start=1)]
    return {"": latex.document(made)}


def _label(kind: str, *parts: str) -> str:
    """Return what ``\\ref`` calls a table."""
    return f"{kind}:{re.sub(r'[^A-Za-z0-9-]+', '-', '-'.join(filter(None, parts)))}"


def _csv(material: Material) -> dict[str, str]:
    return {
        "": exports.values_csv(material.groups),
        "_summary": exports.summary_csv(material.groups, material.resamples),
    }


MAKERS: dict[str, Callable[[Material], dict[str, str]]] = {
    ".html": _page,
    ".htm": _page,
    ".md": _markdown,
    ".tex": _latex,
    ".csv": _csv,
}
"""By a file's ending, what makes its text, and that of others whose names have an addition to the stem."""
