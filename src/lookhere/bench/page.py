"""What the report's page shows: the content of ``report.html.j2``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lookhere import __version__
from lookhere.bench import contrasts, curves, figures, images
from lookhere.bench.groups import Group, differing
from lookhere.bench.headline import headline
from lookhere.bench.material import DRAWN, Material
from lookhere.bench.reliance import reliance_figure, reliance_subsets, reliance_table
from lookhere.bench.significance import significance_table
from lookhere.bench.store import Run
from lookhere.bench.table import trained
from lookhere.bench.tables import comparison, operating_points, overview
from lookhere.bench.values import subset_title
from lookhere.evaluation.statistics import smallest_rank_p
from lookhere.progress import clock
from lookhere.training.config import flat


def page_content(material: Material) -> dict[str, Any]:
    """Return what the template shows of finished runs."""
    everyone = material.groups
    data = {group.data: group for group in reversed(everyone)}
    datasets = {key: images.open_data(group) for key, group in data.items()}
    methods = " · ".join(dict.fromkeys(str(group.result["method"]) for group in everyone))
    several = len(material.parts) > 1
    return {
        "title": material.plan.get("title") or methods or "Nothing finished yet",
        "groups": everyone,
        "styles": figures.line_styles(everyone),
        "version": __version__,
        "runs": len(material.found.runs),
        "data": [_data(group) for group in data.values()],
        "over": "seeds and folds" if any(group.folds for group in everyone) else "seeds",
        "positive": _distinct(f"{g.result['positive']} ({g.result.get('positive_reason', '')})" for g in everyone),
        "backbones": _distinct(group.result["backbone"] for group in everyone),
        "overview": [_overview(material, split) for split in material.splits if several],
        "splits": [_split(part, split) for part in material.parts for split in part.splits],
        "reliance_elsewhere": [_reliance(part, *where) for part in material.parts for where in part.elsewhere],
        "beside": material.beside,
        "thresholds": [(group.label, *_threshold(run)) for group in everyone for run in group.runs],
        "bootstrap": everyone[0].result["evaluation"]["bootstrap"] if everyone else None,
        "training": [
            (part.place(split), split, figures.training_figure(part.drawn, split))
            for part in material.parts
            for split in ("train", "val")
        ],
        **_views(everyone, datasets),
        "mistakes": [_mistakes(one, material.evidence[one.label], datasets[one.data]) for one in material.drawn],
        "most_drawn": DRAWN,
        "undrawn": [(part.name, len(part.groups)) for part in material.parts if part.groups and not part.drawn],
        "missing_data": sorted({why for why in datasets.values() if isinstance(why, str)}),
        "cost": [_cost(group) for group in everyone],
        "notes": material.notes,
        "environment": _environment(everyone),
        "differing": [(name, [_shown(group.options.get(name)) for group in everyone]) for name in differing(everyone)],
        "configs": [(g.label, (g.runs[0].folder / "run.toml").read_text(encoding="utf-8")) for g in everyone],
        "unfinished": material.found.unfinished,
        "duplicates": material.found.duplicates,
    }


def _overview(material: Material, split: str) -> dict[str, Any]:
    """Return what is said of several data sets together."""
    return {"table": overview(material.parts, split), **_ranks(material, split)}


def _ranks(material: Material, split: str) -> dict[str, Any]:
    ranking = contrasts.rank_groups(material.drawn, split, material.subset(split))
    return {"ranking": ranking, "ranks": ranking and contrasts.rank_figure(ranking)}


def _split(material: Material, split: str) -> dict[str, Any]:
    """Return the tables and figures of one test split of one data set."""
    everyone, resamples, subset = material.groups, material.resamples, material.subset(split)
    place = material.place(split)
    about: dict[str, Any] = {"split": split, "resamples": resamples, "place": place}
    table = comparison(everyone, kinds=[subset], **about)
    read_off = {label: one.curves.get(split, []) for label, one in material.evidence.items()}
    pairs = [row.cells[0].paired for row in table.rows]
    fewest = min((paired.n for paired in pairs if paired is not None), default=0)
    return {
        "name": place,
        "styles": figures.line_styles(everyone),
        "subset": subset,
        "headline": table,
        "sentences": headline(table, material.unseen(split), alike=material.unseen_alike(split)),
        "rank_p": (fewest, smallest_rank_p(fewest)) if 2 <= fewest <= 5 else None,
        "comparison": comparison(everyone, kinds=("unseen", "seen", "all"), **about),
        "types": comparison(everyone, kinds=("type",), **about),
        "tests": significance_table(everyone, split, subset, resamples, place),
        "forest": contrasts.forest_figure(material.drawn, table),
        **(_ranks(material, split) if material.whole is None else {"ranking": None, "ranks": None}),
        "ablations": [(one, contrasts.ablation_figure(one, split, subset)) for one in contrasts.ablations(everyone)],
        "reliance": [_reliance(material, *where) for where in reliance_subsets(everyone) if where[0] == split],
        "points": operating_points(everyone, subset, split=split, place=place),
        "dots": figures.dot_figure(material.drawn, split, subset),
        "roc": curves.roc_figure(material.drawn, read_off),
        "det": curves.det_figure(material.drawn, read_off, split),
    }


def _reliance(material: Material, split: str, subset: str) -> dict[str, Any]:
    """Return the table and the figure of the reliance on one subset of a test split."""
    place = material.place(split)
    return {
        "subset": f"{place}, {subset_title(subset)}",
        "styles": figures.line_styles(material.groups),
        "table": reliance_table(material.groups, split, subset, place),
        "figure": reliance_figure(material.drawn, split, subset),
    }


def _data(group: Group) -> dict[str, Any]:
    """Return what is shown of a group's data."""
    about = flat(group.result["data"])
    return about | {"folds": f"{_listing(group.folds)}; counts and maps are of the first"} if group.folds else about


def _threshold(run: Run) -> tuple[str, float | None, str]:
    """Return a run's seed and fold, its threshold, and where that is from or why there is none."""
    threshold = run.result["evaluation"]["threshold"]
    why = threshold.get("source") or threshold.get("why")
    return trained([run.seed], [] if run.fold is None else [run.fold]), threshold["value"], why


def _views(everyone: Sequence[Group], datasets: dict[str, Any]) -> dict[str, Any]:
    """Return the four views of example images, as the first group makes them whose method has views."""
    for group in everyone:
        options = group.runs[0].config.get("method", {}).get("views")
        dataset = datasets[group.data]
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
        "trained": trained(group.seeds, group.folds),
        "parameters": f"{group.result['parameters'] / 1e6:.1f} M" if group.result.get("parameters") else "–",
        "epochs": _distinct(r.get("epochs") for r in results),
        "selected": _listing(r.get("selected_epoch") for r in results),
        "select": _distinct(r.get("select") for r in results),
        "time": clock(sum(seconds) / len(seconds)) if seconds else "–",
        "memory": f"{max(memory):,.0f} MB" if memory else "–",
    }


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
