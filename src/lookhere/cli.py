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

from lookhere import __version__, cli_bench, cli_data, launch
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
    methods: Annotated[
        str, typer.Option("--methods", metavar="NAMES", help="Methods with commas between them, or all.")
    ] = "cross-entropy,sage",
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", min=1, max=100, help="Trainings per method.  [default: 3; of more than four methods 1]"
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The slower, larger version.")] = False,
) -> None:
    """Make the synthetic iris set, train methods on it, compare them and write a report."""
    from lookhere.bench.demo import run_demo

    run_demo(out or Path("demo-full" if full else "demo"), methods=methods, seeds=seeds, full=full)


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
    if not launch.is_first():
        return
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
def predict_maps(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run whose method learns maps.")],
    data: Data = None,
    out: Out = None,
    everything: Annotated[bool, typer.Option("--all", help="Also for images that have a map of their own.")] = False,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Write a manifest in which every image has a saliency map, those without one as a run's network predicts it."""
    from lookhere.bench.predict_maps import predict_maps as write
    from lookhere.bench.run import FinishedRun

    if data is None:
        raise UsageError("--data: is required; give a manifest")
    loaded = FinishedRun.load(run, device or "auto", predicts="map")
    written = write(loaded, data, out or Path("maps"), settings or (), everything=everything)
    side = loaded.config.data.size
    then = "train --method sage" if written.labelled else f"predict {run}"
    print(
        f"predicted maps of {written.predicted} images; {written.kept} kept their own\nmanifest: {written.manifest}\n"
        f"next: lookhere {then} --data {written.manifest}"
        + (f" --set data.size={side}" if written.labelled and side != 224 else "")
    )


@app.command()
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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold them.")],
    out: Out = None,
) -> None:
    """Compare finished runs in one HTML page that needs no network; --out NAME.md, .tex or .csv gives tables."""
    from lookhere.bench.report import write_report

    print(f"report: {write_report(runs, out or Path('report.html'))}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of this method.")] = None,
) -> None:
    """List the training methods, or the options of one with their defaults and ranges."""
    from lookhere.errors import nearest
    from lookhere.methods import COSTS, METHODS

    if name is not None and name not in METHODS:
        raise UsageError(f"there is no method '{name}'{nearest(name, METHODS)} (methods: {', '.join(METHODS)})")
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    if name is not None:
        method, cost = METHODS[name], costs["costs"].get(name, {})
        print(f"{name} ({method.paper}): guidance acts on {method.guides}; maps at test time: {method.maps_at_test}")
        if cost:
            print("cost relative to cross-entropy: " + ", ".join(f"{value:g} ({net})" for net, value in cost.items()))
        print("\n" + _options_text(name), end="")
        return
    table = Table("method", "paper", "guidance acts on", "maps at test", "cost", box=None, padding=(0, 2, 0, 0))
    for method in METHODS.values():
        found = next(iter(costs["costs"].get(method.name, {}).values()), None)
        cost = "–" if found is None else f"{found:.2f}"
        table.add_row(method.name, method.paper, method.guides, method.maps_at_test, cost)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    network = next(iter(costs["costs"].get("sage", {})), "")
    how = f"{network}, {costs['size']} px, batch {costs['batch']}, {costs['machine']}"
    print(
        f"\ncost: of a training relative to cross-entropy, measured ({how})\n"
        "`lookhere methods NAME` shows a method's options with their defaults and ranges."
    )


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
cli_bench.register(app)


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


def _evaluate_reliance(
    runs: Sequence[Path],
    data: Path | None,
    settings: Sequence[str],
    device: str,
    bootstrap: int,
    seed: int | None,
    as_json: bool,
) -> None:
    from lookhere.bench.run import FinishedRun
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


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@cache  # libraries reset what Python remembers of shown warnings; once is enough
def _say_warning(text: str) -> None:
    print(f"lookhere: warning: {text}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if launch.is_first():
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
        print("lookhere: stopped; a training continues with --resume, a study with the same command", file=sys.stderr)
    return code
