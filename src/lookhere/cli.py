"""The command line: a few verbs, each a thin call into the package. Heavy imports happen inside the verbs."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from lookhere import __version__, cli_bench, cli_data, cli_demo, cli_evaluate, cli_methods, cli_train, launch
from lookhere.errors import LookhereError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make or list data sets.")
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train image classifiers to look where people look."""
    if version:
        print(f"lookhere {__version__}")
        raise typer.Exit


# The order is that of the help.
cli_demo.register(app, data_app)
cli_train.register(app)
cli_evaluate.register(app)
cli_methods.register(app)
cli_data.register(app, data_app)
cli_bench.register(app)


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
