"""The verbs that bring data in: ``import``, and ``data`` with what can be had, how, and what it looks like."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lookhere.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from lookhere.data.importers.base import Importer

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="See `lookhere data`.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; new or empty.")]


def register(app: typer.Typer, data_app: typer.Typer) -> None:
    """Add the verbs to the command line and to its group ``data``."""
    app.command("import")(import_source)
    data_app.callback(invoke_without_command=True, no_args_is_help=False)(data)
    data_app.command("show")(show)
    data_app.command("example")(example)


def import_source(
    source: Source,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Files or folders of the source.")],
    out: Out = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="See `lookhere data show SOURCE`.")
    ] = None,
) -> None:
    """Turn a public data set or an export into a manifest with aligned saliency maps."""
    from lookhere.data.importers.base import import_dataset
    from lookhere.options import build_options, put, read_settings

    importer = _importer(source)
    if out is None:
        raise UsageError("--out: is required; expected a new or empty folder")
    content: dict[str, Any] = {}
    for name, value in read_settings(settings or (), example="merge=union").items():
        put(content, name, value)
    imported = import_dataset(importer, paths, build_options(importer.Options, content), out)
    table = Table("split", "label", "type", "images", "maps", box=None, header_style="bold")
    for count in imported.counts:
        table.add_row(*map(str, count))
    Console().print(table)
    for reason, entry in imported.dropped.items():
        print(f"dropped: {entry['count']} × {reason}" + (f", such as {entry['example']}" if entry["example"] else ""))
    for warning in imported.warnings:
        print(f"warning: {warning}")
    print(f"manifest: {imported.manifest}\nprovenance: {out / 'provenance.json'}")
    if imported.by_observer:
        print(f"by observer: {', '.join(map(str, imported.by_observer))}")
    print(f"next: lookhere check {shlex.quote(str(imported.manifest))}")
    print("\n".join(training_command(imported.manifest)))


def data(context: typer.Context) -> None:
    """Make or list data sets."""
    from lookhere.data.importers import IMPORTERS

    if context.invoked_subcommand is not None:
        return
    for importer in IMPORTERS.values():
        _describe(importer)
        print()
    print(
        "`lookhere data show SOURCE` lists the options of an import; `lookhere data example SOURCE --out DIR` writes\n"
        "a tiny folder in a source's layout; `lookhere data iris` draws a synthetic set, which need not be requested."
    )


def show(source: Source) -> None:
    """Say where a source is had, under which terms, and list the options of its import."""
    from lookhere.options import list_options

    importer = _importer(source)
    _describe(importer)
    rows = [("option", "values", "default", ""), *map(astuple, list_options(importer.Options))]
    wide = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]]
    print()
    for *cells, help in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, wide, strict=True)), help]).rstrip())


def example(source: Source, out: Out = None) -> None:
    """Write a tiny synthetic folder in a source's own layout, and print the command that imports it."""
    importer = _importer(source)
    folder = out or Path(f"example-{source}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out: {folder} is not empty; give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    importer.example(folder)
    print(f"folder: {folder}\nnext: {_command(importer, str(folder), f'{folder}-imported')}")


def training_command(manifest: Path) -> Sequence[str]:
    """Return lines of which the last is the command that trains on a manifest, or that checks it if nothing can."""
    from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest

    path = shlex.quote(str(manifest))
    problems: list[str] = []
    for need_val, setting in ((True, ""), (False, " --set training.select=last")):
        try:
            read = read_manifest(DataOptions(manifest=manifest), SaliencyOptions(), need_val=need_val)
        except DataError as error:
            problems = error.problems
            continue
        guided = any(read.saliency[row] for row in read.rows("train"))
        return [f"lookhere train --data {path} --method {'sage' if guided else 'cross-entropy'}{setting}"]
    return [f"not for training: {problems[0]}", f"lookhere predict RUN --data {path}"]


def _describe(importer: Importer) -> None:
    print(f"{importer.name}: {importer.title}")
    print(f"  from:    {importer.request}\n  licence: {importer.licence}")
    print(f"  import:  {_command(importer, 'FOLDER', 'DIR')}")
    if importer.extra:
        print(f"  needs:   pip install 'lookhere[{importer.extra}]'")


def _command(importer: Importer, folder: str, out: str) -> str:
    arguments = [argument.replace("{folder}", folder) for argument in importer.example_arguments]
    return shlex.join(["lookhere", "import", importer.name, *arguments, "--out", out])


def _importer(source: str) -> Importer:
    from lookhere.data.importers import IMPORTERS

    if source not in IMPORTERS:
        known = ", ".join(IMPORTERS)
        raise UsageError(f"there is no source '{source}'{nearest(source, IMPORTERS)} (sources: {known})")
    return IMPORTERS[source]
