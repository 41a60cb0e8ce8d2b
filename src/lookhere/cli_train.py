"""The verbs that make networks and use them: ``train``, ``predict`` and ``predict-maps``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from lookhere import launch
from lookhere.cli_evaluate import print_evaluation
from lookhere.cli_methods import options_text
from lookhere.cli_options import ConfigFile, Data, Device, Out, Set
from lookhere.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(cls=_TrainCommand)(train)
    app.command()(predict)
    app.command()(predict_maps)


class _TrainCommand(typer.core.TyperCommand):
    """Lists every option by its dotted name below the usual help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.write(
            "\nOptions of --config and --set (with --method sage; `lookhere methods NAME` shows another's):\n\n"
        )
        formatter.write(options_text("sage"))


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
    print_evaluation(result["evaluation"])
    print(
        f"\npositive class: {result['positive']} ({result['positive_reason']}); "
        f"weights of epoch {result['selected_epoch']} ({result['select']})\n"
        f"run folder: {folder}\nnext: lookhere report {folder} --out report.html"
    )


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Data = None,
    out: Out = None,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Write the raw logits of a run's network for every image of a manifest, labelled or not."""
    from lookhere.bench.finished import FinishedRun
    from lookhere.evaluation.scores import write_scores

    if data is None:
        raise UsageError("--data: is required; give a manifest")
    path = out or Path("scores.csv")
    scores = FinishedRun.load(run, device or "auto").predict(data, settings or ())
    write_scores(path, scores)
    print(f"{len(scores)} images: {path}\nnext: lookhere evaluate {path} --val {run / 'predictions.csv'}")


def predict_maps(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run whose method learns maps.")],
    data: Data = None,
    out: Out = None,
    everything: Annotated[bool, typer.Option("--all", help="Also for images that have a map of their own.")] = False,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Write a manifest in which every image has a saliency map, those without one as a run's network predicts it."""
    from lookhere.bench.finished import FinishedRun
    from lookhere.bench.predict_maps import predict_maps as write

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
