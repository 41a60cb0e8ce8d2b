"""The report: one HTML file that compares runs, needs no network, and runs no script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lookhere import __version__
from lookhere.bench import contrasts, curves, exports, figures, images, latex, tables
from lookhere.bench.published import published_tables
from lookhere.bench.resamples import Resamples
from lookhere.bench.significance import significance_table
from lookhere.bench.store import Found, Group, differing, find_runs, groups
from lookhere.errors import UsageError
from lookhere.evaluation.statistics import smallest_rank_p
from lookhere.progress import Track, clock
from lookhere.training.config import flat
from lookhere.training.folder import write_text


def write_report(paths: Iterable[Path], out: Path, *, published: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the report of all runs at or below ``paths`` to the file ``out``, whole or not at all, and return it.

    The name's ending says what it gets: ``.html`` the whole page; ``.md`` the tables; ``.tex`` a table for each metric,
    for booktabs; ``.csv`` every number of every run, and a second file, ``…_summary.csv``, the means and differences.
    All but the last show published numbers, as ``plan.json`` holds them, beside those measured.

    Raises:
        UsageError: no run found, another ending, or a place that cannot be written.
        DataError: damaged files of finished runs.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out}: a folder; expected the name of an HTML file, such as {out / 'report.html'}")
    if out.suffix.lower() not in MAKERS:
        raise UsageError(f"{out}: expected a name that ends in {', '.join(MAKERS)}")
    found = find_runs(paths)
    beside = published_tables(published, {run.folder.name: run for run in found.runs})
    texts = MAKERS[out.suffix.lower()](found, beside)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for addition, text in reversed(texts.items()):  # the file that was asked for is written last
            write_text(out.with_stem(out.stem + addition), text)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
    return out


def _page(found: Found, beside: Sequence[tables.Table]) -> dict[str, str]:
    environment = Environment(
        loader=PackageLoader("lookhere", "bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return {"": environment.get_template("report.html.j2").render(_content(found), beside=beside)}


def _markdown(found: Found, beside: Sequence[tables.Table]) -> dict[str, str]:
    everyone = groups(found.runs)
    resamples = _resamples(everyone, _read_evidence(everyone))
    parts = []
    for split in tables.test_splits(everyone):
        unseen = any(tables.subset_types(group, split, "unseen") for group in everyone)
        parts.append(tables.comparison(everyone, split=split, resamples=resamples).markdown())
        parts += [one["table"].markdown() for one in _reliance(everyone, split)]
        points = tables.operating_points(everyone, "unseen" if unseen else "all", split=split)
        notes = (f"{label}: {note}" for label, note in _notes(everyone))
        parts.append(replace(points, notes=(*points.notes, *notes)).markdown())
        tests = significance_table(everyone, split, "unseen" if unseen else "all", resamples)
        parts += [tests.markdown()] if tests else []
    parts += [one["table"].markdown() for one in _reliance_elsewhere(everyone)]
    return {"": "\n".join([*parts, *(table.markdown() for table in beside)])}


def _latex(found: Found, beside: Sequence[tables.Table]) -> dict[str, str]:
    everyone = groups(found.runs)
    resamples = _resamples(everyone, _read_evidence(everyone))
    made = []
    for split in tables.test_splits(everyone):
        subset = "unseen" if any(tables.subset_types(group, split, "unseen") for group in everyone) else "all"
        for metric in tables.TITLES:
            for suffix, kinds in (("", ("unseen", "seen", "all")), (", by type", ("type",))):
                table = tables.comparison(everyone, metric, split=split, kinds=kinds, resamples=resamples)
                if any(cell.mean is not None for row in table.rows for cell in row.cells):
                    label = f"tab:{split}-{metric}{suffix and '-types'}".replace("_", "-")
                    made.append((label, replace(table, title=table.title + suffix)))
        if tests := significance_table(everyone, split, subset, resamples):
            made.append((f"tab:{split}-tests".replace("_", "-"), tests))
    made += [(f"tab:published-{i}", table) for i, table in enumerate(beside, start=1)]
    return {"": latex.document(made)}


def _csv(found: Found, beside: Sequence[tables.Table]) -> dict[str, str]:
    everyone = groups(found.runs)
    resamples = _resamples(everyone, _read_evidence(everyone))
    return {"": exports.values_csv(everyone), "_summary": exports.summary_csv(everyone, resamples)}


MAKERS: dict[str, Callable[[Found, Sequence[tables.Table]], dict[str, str]]] = {
    ".html": _page,
    ".htm": _page,
    ".md": _markdown,
    ".tex": _latex,
    ".csv": _csv,
}
"""By a file's ending, what makes its text, and that of others whose names have an addition to the stem."""


def _reliance(everyone: Sequence[Group], split: str) -> list[dict[str, Any]]:
    """Return a table and a figure for each subset of a test split on which reliance was measured."""
    return [
        {
            "subset": f"{split}, {tables.subset_title(subset)}",
            "table": tables.reliance(everyone, split, subset),
            "figure": figures.reliance_figure(everyone, split, subset),
        }
        for where, subset in tables.reliance_subsets(everyone)
        if where == split
    ]


def _reliance_elsewhere(everyone: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the same of test splits that the trainings did not have."""
    splits = dict.fromkeys(split for split, _ in tables.reliance_subsets(everyone))
    return [one for split in splits if split not in tables.test_splits(everyone) for one in _reliance(everyone, split)]


def headline(table: tables.Table, types: Sequence[str]) -> list[str]:
    """Return one sentence for each comparison with a baseline, from the numbers alone.

    Args:
        table: a comparison with a single column.
        types: the types unseen in training that the column is about; none if it is about all images.
    """
    cells = {row.label: row.cells[0] for row in table.rows}
    if types:
        lead = f"{table.title}, for the {_count(len(types), 'type')} that no training image shows: {_listing(types)}."
    else:
        lead = f"{table.title}. No type is known to be unseen in training, so this is not an open-set number."
    sentences = [_sentence(row.label, row.cells[0], row.baseline, cells) for row in table.rows if row.baseline]
    return [lead, *(sentences or [f"{label}: {cell.text}." for label, cell in cells.items()])]


def _sentence(label: str, cell: tables.Cell, baseline: str, cells: dict[str, tables.Cell]) -> str:
    start = f"{label} reaches {cell.text}, {baseline} {cells[baseline].text}."
    paired = cell.paired
    if paired is None or paired.mean is None:
        return f"{start} They have no seed in common with a defined value, so there is no paired difference."
    difference = tables.number(paired.mean, "auroc", sign=True)
    if paired.low is None or paired.high is None:
        return f"{start} The difference is {difference}; from one seed, nobody can tell whether it is more than chance."
    low, high = (tables.number(end, "auroc", sign=True) for end in (paired.low, paired.high))
    interval = f"{start} Paired over {paired.n} seeds the difference is {difference}, 95 % interval [{low}, {high}]"
    if not tables.excludes_zero(paired):
        return f"{interval}: it contains zero, so these runs do not tell the two apart."
    verdict = "higher" if paired.mean > 0 else "lower"
    chosen = "seeds and test images" if paired.images else "seeds"
    return f"{interval}: {verdict} by more than the choice of {chosen} explains, on this data."


def _content(found: Found) -> dict[str, Any]:
    everyone = groups(found.runs)
    evidence = _read_evidence(everyone)
    resamples = _resamples(everyone, evidence)
    data = {group.runs[0].data_sha256: group for group in reversed(everyone)}
    datasets = {sha256: images.open_data(group) for sha256, group in data.items()}
    splits = tables.test_splits(everyone)
    return {
        "title": " · ".join(dict.fromkeys(str(group.result["method"]) for group in everyone)) or "Nothing finished yet",
        "groups": everyone,
        "styles": figures.line_styles(everyone),
        "version": __version__,
        "runs": len(found.runs),
        "data": [flat(group.result["data"]) for group in data.values()],
        "positive": _distinct(f"{g.result['positive']} ({g.result.get('positive_reason', '')})" for g in everyone),
        "backbones": _distinct(group.result["backbone"] for group in everyone),
        "splits": [_split(everyone, split, evidence, resamples) for split in splits],
        "reliance_elsewhere": _reliance_elsewhere(everyone),
        "thresholds": [
            (group.label, run.seed, threshold["value"], threshold.get("source") or threshold.get("why"))
            for group in everyone
            for run in group.runs
            for threshold in [run.result["evaluation"]["threshold"]]
        ],
        "bootstrap": everyone[0].result["evaluation"]["bootstrap"] if everyone else None,
        "training": [(part, figures.training_figure(everyone, part)) for part in ("train", "val")],
        **_views(everyone, datasets),
        "mistakes": [
            _mistakes(group, evidence[group.label], datasets[group.runs[0].data_sha256]) for group in everyone
        ],
        "missing_data": sorted({why for why in datasets.values() if isinstance(why, str)}),
        "cost": [_cost(group) for group in everyone],
        "notes": _notes(everyone),
        "environment": _environment(everyone),
        "differing": [(name, [_shown(group.options.get(name)) for group in everyone]) for name in differing(everyone)],
        "configs": [(g.label, (g.runs[0].folder / "run.toml").read_text(encoding="utf-8")) for g in everyone],
        "unfinished": found.unfinished,
        "duplicates": found.duplicates,
    }


def _read_evidence(everyone: Sequence[Group]) -> dict[str, images.Evidence]:
    evidence = {}
    with Track("Reading predictions", len(everyone)) as track:
        for group in everyone:
            evidence[group.label] = images.read_evidence(group)
            track.advance()
    return evidence


def _resamples(everyone: Sequence[Group], evidence: dict[str, images.Evidence]) -> Resamples:
    return Resamples(everyone, {label: one.tested for label, one in evidence.items()})


def _split(
    everyone: Sequence[Group], split: str, evidence: dict[str, images.Evidence], resamples: Resamples
) -> dict[str, Any]:
    """Return the tables and figures of one test split."""
    unseen = sorted({name for group in everyone for name in tables.subset_types(group, split, "unseen")})
    subset = "unseen" if unseen else "all"
    table = tables.comparison(everyone, split=split, kinds=[subset], resamples=resamples)
    ranking = contrasts.rank_groups(everyone, split, subset)
    read_off = {label: one.curves.get(split, []) for label, one in evidence.items()}
    pairs = [row.cells[0].paired for row in table.rows]
    fewest = min((paired.n for paired in pairs if paired is not None), default=0)
    return {
        "name": split,
        "subset": subset,
        "headline": table,
        "sentences": headline(table, unseen),
        "rank_p": (fewest, smallest_rank_p(fewest)) if 2 <= fewest <= 5 else None,
        "comparison": tables.comparison(everyone, split=split, kinds=("unseen", "seen", "all"), resamples=resamples),
        "types": tables.comparison(everyone, split=split, kinds=("type",), resamples=resamples),
        "tests": significance_table(everyone, split, subset, resamples),
        "forest": contrasts.forest_figure(everyone, table),
        "ranking": ranking,
        "ranks": ranking and contrasts.rank_figure(ranking),
        "ablations": [(one, contrasts.ablation_figure(one, split, subset)) for one in contrasts.ablations(everyone)],
        "reliance": _reliance(everyone, split),
        "points": tables.operating_points(everyone, subset, split=split),
        "dots": figures.dot_figure(everyone, split, subset),
        "roc": curves.roc_figure(everyone, read_off),
        "det": curves.det_figure(everyone, read_off, split),
    }


def _views(everyone: Sequence[Group], datasets: dict[str, Any]) -> dict[str, Any]:
    """Return the four views of example images, as the first group makes them whose method has views."""
    for group in everyone:
        options = group.runs[0].config.get("method", {}).get("views")
        dataset = datasets[group.runs[0].data_sha256]
        if options is not None and not isinstance(dataset, str):
            return {
                "view_titles": images.VIEW_TITLES,
                "view_rows": images.view_rows(dataset, options),
                "views_of": group.label,
                "view_options": ", ".join(f"{name} = {value}" for name, value in options.items()),
            }
    return {"view_titles": (), "view_rows": [], "views_of": "", "view_options": ""}


def _mistakes(group: Group, evidence: images.Evidence, dataset: Any) -> dict[str, Any]:
    return {
        "label": group.label,
        "kinds": [
            (title, list(zip(mistakes, images.pictures(dataset, mistakes), strict=True)))
            for title, mistakes in (
                ("Negatives taken for positive", evidence.false_positives),
                ("Positives missed", evidence.false_negatives),
            )
        ],
    }


def _cost(group: Group) -> dict[str, Any]:
    results = [run.result for run in group.runs]
    seconds = [r["seconds"] for r in results if r.get("seconds") is not None]
    memory = [r["peak_memory_mb"] for r in results if r.get("peak_memory_mb") is not None]
    return {
        "label": group.label,
        "seeds": _listing(group.seeds),
        "parameters": f"{group.result['parameters'] / 1e6:.1f} M" if group.result.get("parameters") else "–",
        "epochs": _distinct(r.get("epochs") for r in results),
        "selected": _listing(r.get("selected_epoch") for r in results),
        "select": _distinct(r.get("select") for r in results),
        "time": clock(sum(seconds) / len(seconds)) if seconds else "–",
        "memory": f"{max(memory):,.0f} MB" if memory else "–",
    }


def _notes(everyone: Sequence[Group]) -> list[tuple[str, str]]:
    """Return what a reader must know of each group beside its options, by the group's label."""
    several = ((group.label, note) for group in everyone for run in group.runs for note in run.result.get("notes", ()))
    return list(dict.fromkeys(several))


def _environment(everyone: Sequence[Group]) -> list[tuple[str, str]]:
    """Return what the runs ran on, by dotted name, with every distinct value."""
    several = [flat(run.environment) for group in everyone for run in group.runs]
    names = dict.fromkeys(name for one in several for name in one)
    return [(name, _distinct(_shown(one.get(name)) for one in several)) for name in names]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _distinct(values: Iterable[Any]) -> str:
    return " / ".join(dict.fromkeys("–" if value is None else str(value) for value in values))


def _listing(values: Iterable[Any]) -> str:
    return ", ".join("–" if value is None else str(value) for value in values)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
