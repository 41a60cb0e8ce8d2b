"""The command line: a few verbs, each a thin call into the package. Heavy imports happen inside the verbs."""

from __future__ import annotations

import io
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console
from rich.table import Table

from lookhere import __version__, cli_data
from lookhere.errors import DataError, LookhereError, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make or list data sets.")
app.add_typer(data_app, name="data")

Data = Annotated[Path | None, typer.Option("--data", metavar="CSV", help="Manifest of images, labels and splits.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any option by its dotted name; repeatable.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="TOML", help="Options from a file.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]


class _TrainCommand(typer.core.TyperCommand):
    """Lists every option by its dotted name below the usual help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.write(
            "\nOptions of --config and --set (with --method sage; `lookhere methods NAME` shows another's):\n\n"
        )
        formatter.write(_options_text("sage"))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train image classifiers to look where people look."""
    if version:
        print(f"lookhere {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Out = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Trainings per method.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="The slower, larger version.")] = False,
) -> None:
    """Make the synthetic iris set, train cross-entropy and SAGE on it, compare them and write a report."""
    from lookhere.bench.demo import run_demo

    run_demo(out or Path("demo-full" if full else "demo"), seeds=seeds, full=full)


@app.command(cls=_TrainCommand)
def train(
    data: Data = None,
    method: Annotated[str | None, typer.Option("--method", help="See `lookhere methods`.  [default: sage]")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="A timm model.  [default: resnet50]")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="pretrained, random, or a .safetensors file.  [default: pretrained]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="[default: 0]")] = None,
    out: Out = None,
    config: ConfigFile = None,
    settings: Set = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")] = False,
) -> None:
    """Train one method on a manifest, predict its val and test splits, and evaluate."""
    from lookhere.training.config import load_config

    flags = {
        "data.manifest": data and str(data),
        "method.name": method,
        "backbone.name": backbone,
        "backbone.weights": weights,
        "seed": seed,
        "training.device": device,
    }
    options = load_config(config, settings or (), flags)

    from lookhere.bench import run

    folder = out or Path("runs") / f"{options.method.name}-{options.backbone.name}-seed{options.seed}"
    result = run.train(options, folder, resume=resume)
    _print_evaluation(result["evaluation"])
    print(
        f"\npositive class: {result['positive']} ({result['positive_reason']}); "
        f"weights of epoch {result['selected_epoch']} ({result['select']})\n"
        f"run folder: {folder}\nnext: lookhere report {folder} --out report.html"
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Data = None,
    out: Out = None,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Write the raw logits of a run's network for every image of a manifest, labelled or not."""
    from lookhere.bench.run import FinishedRun
    from lookhere.evaluation.scores import write_scores

    if data is None:
        raise UsageError("--data: is required; give a manifest")
    path = out or Path("scores.csv")
    scores = FinishedRun.load(run, device or "auto").predict(data, settings or ())
    write_scores(path, scores)
    print(f"{len(scores)} images: {path}\nnext: lookhere evaluate {path} --val {run / 'predictions.csv'}")


@app.command()
def evaluate(
    scores: Annotated[list[Path], typer.Argument(help="Files of predictions; several are joined into one test.")],
    val: Annotated[Path | None, typer.Option("--val", help="Predictions whose val rows set the threshold.")] = None,
    positive: Annotated[str | None, typer.Option("--positive", help="Positive class.  [default: the last one]")] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compute AUROC, error rates and their intervals from predictions, per split and per type."""
    from lookhere.evaluation.evaluate import evaluate as compute
    from lookhere.evaluation.scores import read_scores

    table = read_scores(*scores)
    validation = None if val is None else read_scores(val)
    result = compute(table, positive=positive or table.classes[-1], validation=validation, bootstrap=bootstrap)
    print(json.dumps(result, indent=1)) if as_json else _print_evaluation(result)


@app.command()
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
        dataset, summary = inspect(options.data, options.saliency)
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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold them.")],
    out: Out = None,
) -> None:
    """Compare finished runs in one HTML page that needs no network, or in Markdown tables (--out NAME.md)."""
    from lookhere.bench.report import write_report

    print(f"report: {write_report(runs, out or Path('report.html'))}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of this method.")] = None,
) -> None:
    """List the training methods, or the options of one with their defaults and ranges."""
    from lookhere.errors import nearest
    from lookhere.methods import METHODS

    if name is not None and name not in METHODS:
        raise UsageError(f"there is no method '{name}'{nearest(name, METHODS)} (methods: {', '.join(METHODS)})")
    if name is not None:
        print(_options_text(name), end="")
        return
    table = Table("method", "paper", "guidance acts on", "passes per step", box=None)
    for method in METHODS.values():
        table.add_row(method.name, method.paper, method.guides, str(method.passes))
    Console().print(table)
    print("\n`lookhere methods NAME` shows a method's options with their defaults and ranges.")


@data_app.command()
def iris(
    out: Out = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    size: Annotated[int, typer.Option("--size", min=96, max=224, help="Side of the images in pixels.")] = 128,
    train: Annotated[int, typer.Option("--train", min=8, help="Training images.")] = 400,
    val: Annotated[int, typer.Option("--val", min=8, help="Validation images.")] = 120,
    test: Annotated[int, typer.Option("--test", min=8, help="Test images.")] = 600,
    maps: Annotated[float, typer.Option("--maps", min=0, max=1, help="Fraction of training images with a map.")] = 1.0,
) -> None:
    """Draw the synthetic iris set: bona fide eyes, five attack types, and maps as people would paint them."""
    from lookhere.data.iris import make_iris

    manifest = make_iris(out or Path("iris"), seed=seed, size=size, train=train, val=val, test=test, maps=maps)
    print(f"manifest: {manifest}\nnext: lookhere train --data {manifest} --method sage --set data.size={size}")


cli_data.register(app, data_app)


def _options_text(method: str) -> str:
    from lookhere.training.config import list_options

    options = list_options(method)
    wide = [max(len(getattr(option, part)) for option in options) for part in ("name", "kind", "default")]
    rows = [(o.name.ljust(wide[0]), o.kind.ljust(wide[1]), o.default.ljust(wide[2]), o.help) for o in options]
    return "".join("  ".join(row) + "\n" for row in rows)


def _print_evaluation(result: dict[str, Any]) -> None:
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


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@cache  # libraries reset what Python remembers of shown warnings; once is enough
def _say_warning(text: str) -> None:
    print(f"lookhere: warning: {text}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say_warning(str(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see the design: 0, 2, 3, 4, 5, 130, 143)."""
    signal.signal(signal.SIGTERM, _stop)
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign shows a question mark
    try:
        code = int(app(args=None if arguments is None else list(arguments), standalone_mode=False) or 0)
    except LookhereError as error:
        print(f"lookhere: error: {error}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        text = error.format_message()
        print(text if text.startswith("Usage:") else f"lookhere: error: {text}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    except SystemExit as stop:
        code = int(stop.code or 0)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("lookhere: stopped; a training continues with --resume", file=sys.stderr)
    return code
