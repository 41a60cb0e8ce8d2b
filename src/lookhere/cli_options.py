"""Options that several verbs share: each has one name, one help text and one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path | None, typer.Option("--data", metavar="CSV", help="Manifest of images, labels and splits.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any option by its dotted name; repeatable.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="TOML", help="Options from a file.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
