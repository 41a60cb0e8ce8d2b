"""The verbs that judge: ``evaluate`` predictions and networks, ``check`` data, and ``report`` on finished runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lookhere.cli_options import ConfigFile, Device, Out, Set
from lookhere.errors import DataError, UsageError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (evaluate, check, report):
        app.command()(verb)


def evaluate(
    scores: Annotated[
        list[Path],
        typer.Argument(help="Files of predictions, joined into one test; with --reliance, folders of finished runs."),
    ],
    val: Annotated[Path | None, typer.Option("--val", help="Predictions whose val rows set the threshold.")] = None,
    positive: Annotated[str | None, typer.Option("--positive", help="Positive class.  [default: the last one]")] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Of all that is drawn.  [default: 0]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    reliance: Annotated[
        bool,
        typer.Option(
            "--reliance", help="AUROC of runs with the salient region alone, hidden, and on other backgrounds."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="CSV", help="Manifest for --reliance.  [default: that of the training]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="With --reliance: reliance.blur=0.1, data.root=…; repeatable."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Compute AUROC, error rates and intervals from predictions, or runs' reliance on the salient region."""
    others = (
        {"--val": val, "--positive": positive} if reliance else {"--data": data, "--set": settings, "--device": device}
    )
    if given := [name for name, value in others.items() if value]:
        raise UsageError(f"{', '.join(given)}: {'has no meaning with' if reliance else 'is for'} --reliance")
    if reliance:
        _evaluate_reliance(scores, data, settings or [], device or "auto", bootstrap, seed, as_json)
        return
    from lookhere.evaluation.evaluate import evaluate as compute
    from lookhere.evaluation.scores import read_scores

    table = read_scores(*scores)
    validation = None if val is None else read_scores(val)
    named = positive or table.classes[-1]
    result = compute(table, positive=named, validation=validation, bootstrap=bootstrap, seed=seed or 0)
    print(json.dumps(result, indent=1)) if as_json else print_evaluation(result)


def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest of images, labels and splits.")],
    config: ConfigFile = None,
    settings: Set = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of images and maps (HTML).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sheet's random draw.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Decode every image and map of a manifest and say what is wrong with it, all at once."""
    from lookhere.data.check import inspect
    from lookhere.training.config import load_config

    options = load_config(config, settings or (), {"data.manifest": str(manifest)})
    try:
        dataset, summary = inspect(options.data, options.saliency, protocol=options.protocol)
    except DataError as error:
        if as_json:
            print(json.dumps({"ready": False, "errors": error.problems}, indent=1))
        raise
    if sheet:
        from lookhere.data.sheet import write_sheet

        write_sheet(sheet, dataset, summary, seed=seed)
    print(json.dumps(summary.to_json(), indent=1) if as_json else "\n".join(summary.lines()))
    if sheet:
        print(f"contact sheet: {sheet}", file=sys.stderr if as_json else sys.stdout)
    summary.require_ready(strict)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold them.")],
    out: Out = None,
) -> None:
    """Compare finished runs in one HTML page that needs no network; --out NAME.md, .tex or .csv gives tables."""
    from lookhere.bench.report import write_report

    print(f"report: {write_report(runs, out or Path('report.html'))}")


def print_evaluation(result: dict[str, Any]) -> None:
    """Print an evaluation as a table, with what its columns mean."""
    from lookhere.evaluation.evaluate import SUMMARY_COLUMNS, summary_rows

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in SUMMARY_COLUMNS:
        table.add_column(name, no_wrap=name == "AUROC")
    undefined: dict[str, None] = {}
    for row in summary_rows(result):
        reasons = {cell: cell.removeprefix("undefined (")[:-1] for cell in row if cell.startswith("undefined (")}
        undefined |= dict.fromkeys(reasons.values())
        cells = ["–" if cell in reasons else cell for cell in row]
        if console.width < 120:  # the intervals of all but the AUROC make place for a line each
            cells[4:] = [cell.partition(" [")[0] for cell in cells[4:]]
        table.add_row(*cells)
    console.print(table)
    threshold = result["threshold"]
    shown = f"{threshold['value']:.4f}, {threshold['source']}" if threshold["value"] is not None else threshold["why"]
    print("\n" + "".join(f"– : {reason}\n" for reason in undefined), end="")
    print("APCER@1%: at a BPCER of at most 1 %; detected: share of positives at or above the threshold")
    print(f"score: {result['score']} of {result['positive']}, high = {result['positive']}; threshold: {shown}")


def _evaluate_reliance(
    runs: Sequence[Path],
    data: Path | None,
    settings: Sequence[str],
    device: str,
    bootstrap: int,
    seed: int | None,
    as_json: bool,
) -> None:
    from lookhere.bench.finished import FinishedRun
    from lookhere.evaluation.alterations import RelianceOptions
    from lookhere.evaluation.reliance import summary
    from lookhere.options import Options, build_options, put, read_settings

    class Settings(Options):
        reliance: RelianceOptions

    content: dict[str, Any] = {"reliance": {}}
    own = [setting for setting in settings if setting.startswith("reliance.")]
    own += [] if seed is None else [f"reliance.seed={seed}"]
    for name, value in read_settings(own, example="reliance.blur=0.1").items():
        put(content, name, value)
    options = build_options(Settings, content).reliance
    places = [setting for setting in settings if not setting.startswith("reliance.")]
    results = {}
    for folder in runs:
        run = FinishedRun.load(folder, device)
        results[str(folder)] = run.measure_reliance(data, places, options, bootstrap=bootstrap)
        if as_json:
            continue
        print(f"{folder}: {run.result['method']}, seed {run.result['seed']}")
        console = Console(width=None if sys.stdout.isatty() else 140)
        for title, columns, rows, notes in summary(results[str(folder)]):
            table = Table(*columns, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
            for row in rows:
                table.add_row(*row)
            console.print(table)
            print("".join(f"{note}\n" for note in notes))
    if as_json:
        print(json.dumps(results, indent=1))
        return
    print(f"written: {', '.join(str(folder / 'reliance.json') for folder in runs)}")
    print(f"next: lookhere report {' '.join(map(str, runs))} --out report.html")
