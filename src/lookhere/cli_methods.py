"""The verb ``methods``: the training methods, and every option of one."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lookhere.errors import UsageError, nearest


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of this method.")] = None,
) -> None:
    """List the training methods, or the options of one with their defaults and ranges."""
    from lookhere.methods import COSTS, METHODS

    if name is not None and name not in METHODS:
        raise UsageError(f"there is no method '{name}'{nearest(name, METHODS)} (methods: {', '.join(METHODS)})")
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    if name is not None:
        method, cost = METHODS[name], costs["costs"].get(name, {})
        print(f"{name} ({method.paper}): guidance acts on {method.guides}; maps at test time: {method.maps_at_test}")
        if cost:
            print("cost relative to cross-entropy: " + ", ".join(f"{value:g} ({net})" for net, value in cost.items()))
        print("\n" + options_text(name), end="")
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


def options_text(method: str) -> str:
    """Return a line for every option that ``--config`` and ``--set`` take with a method."""
    from lookhere.training.config import list_options

    options = list_options(method)
    wide = [max(len(getattr(option, part)) for option in options) for part in ("name", "kind", "default")]
    rows = [(o.name.ljust(wide[0]), o.kind.ljust(wide[1]), o.default.ljust(wide[2]), o.help) for o in options]
    return "".join("  ".join(row) + "\n" for row in rows)
