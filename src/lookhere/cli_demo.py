"""The verbs that need no data of one's own: ``demo``, and ``data iris``, the synthetic set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookhere.cli_options import Out


def register(app: typer.Typer, data_app: typer.Typer) -> None:
    """Add the verbs to the command line and to its group ``data``."""
    app.command()(demo)
    data_app.command()(iris)


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
