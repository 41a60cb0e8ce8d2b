"""The verbs of studies: ``bench run``, ``bench status`` and ``bench report``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lookhere.errors import UsageError

if TYPE_CHECKING:
    from lookhere.bench.cluster import RayEngine
    from lookhere.bench.local import LocalEngine
    from lookhere.bench.plan import Plan
    from lookhere.bench.status import Status

FAILED = 5
"""Exit code of a plan that finished with failed runs."""
SHOWN = 20

PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="TOML file, see docs/studies.md and recipes/.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=CSV", help="Manifest of one of the plan's data sets; repeatable."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="AXIS=VALUE", help="Leave out all other values of an axis; repeatable."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any option by its dotted name, for all trainings; repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add the group ``bench`` to the command line."""
    bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run, follow and report a study.")
    bench.command("run")(run)
    bench.command("status")(status)
    bench.command("report")(report)
    app.add_typer(bench, name="bench")


def run(
    plan: PlanPath,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study.")] = None,
    data: Data = None,
    only: Only = None,
    settings: Set = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Do every N-th training, from the I-th on.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Where trainings run: this machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Of the Ray cluster.  [default: the one of this machine]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Most trainings at a time.  [default: 1 per GPU or 2 cores]"),
    ] = None,
    per_device: Annotated[int, typer.Option("--per-device", min=1, help="Trainings that share a GPU.")] = 1,
) -> None:
    """Do all trainings of a plan that are not done yet; the same command continues what was interrupted."""
    from lookhere.bench.conduct import run_study
    from lookhere.bench.plan import read_plan
    from lookhere.bench.study import prepare
    from lookhere.bench.watch import Watch

    part = _shard(shard)
    if out is None:
        raise UsageError("--out: is required; expected the folder of the study")
    if address and engine != "ray":
        raise UsageError("--address: names a Ray cluster, so it needs --engine ray")
    resolved = read_plan(plan, data=data or (), only=only or (), settings=settings or ())
    with _engine(engine, resolved, address, workers, per_device) as chosen:
        study = prepare(resolved, out)
        for note in study.notes:
            print(f"note: {note}", file=sys.stderr)
        share = f" of shard {shard}" if shard else ""
        at_once = f"{chosen.slots} at a time, {chosen.threads} thread{'s' if chosen.threads > 1 else ''} each"
        print(f"{len(study.shard(*part))} trainings{share}; {at_once}", file=sys.stderr)
        with Watch(chosen.slots) as watch:
            outcome = run_study(study, chosen, shard=part, report=watch)
    for event in outcome.failed:
        print(f"failed: {event.job.label}: {event.reason}\n  log: {event.job.log}", file=sys.stderr)
    elsewhere = f", {len(outcome.elsewhere)} running elsewhere" if outcome.elsewhere else ""
    done = len(outcome.before) + len(outcome.done)
    everything = done + len(outcome.failed) + len(outcome.elsewhere)
    print(f"{done} of {everything} trainings{share} done, {len(outcome.failed)} failed{elsewhere}")
    print(f"next: lookhere bench report {out} --out report.html")
    if outcome.failed:
        print("the same command tries those that failed again", file=sys.stderr)
        raise typer.Exit(FAILED)


def status(
    study: Annotated[Path, typer.Argument(metavar="DIR|PLAN", help="Folder of a study, or a plan to look at.")],
    data: Data = None,
    only: Only = None,
    settings: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say how far a study is, or what a plan would do; nothing is started."""
    from lookhere.bench.status import read_status

    if study.suffix == ".toml":
        from lookhere.bench.plan import read_plan  # loads PyTorch, which a look at a folder does not need

        _show_plan(read_plan(study, data=data or (), only=only or (), settings=settings or ()), as_json)
        return
    if data or only or settings:
        raise UsageError("--data, --only, --set: are for a plan; this is the folder of a study")
    found = read_status(study)
    print(json.dumps(asdict(found), indent=1)) if as_json else _show_status(found)


def report(
    study: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study.")],
    out: Annotated[Path | None, typer.Option("--out", help="NAME.html or NAME.md.  [default: DIR/report.html]")] = None,
) -> None:
    """Compare what is finished of a study, at any moment, and show published numbers beside it."""
    from lookhere.bench.report import write_report
    from lookhere.bench.status import read_plan_json

    plan = read_plan_json(study)
    begun = [path for run in plan["runs"] if (path := study / "runs" / run["name"]).is_dir()]
    if not begun:
        raise UsageError(f"{study}: no training of this study has begun")
    print(f"report: {write_report(begun, out or study / 'report.html', plan=plan)}")


@contextmanager
def _engine(
    name: Literal["local", "ray"], plan: Plan, address: str | None, workers: int | None, per_device: int
) -> Iterator[LocalEngine | RayEngine]:
    """Return the engine for the trainings of a plan, which may hold a connection."""
    options = [entry.config.training for entry in plan.entries]
    devices = {training.device for training in options}
    if name == "ray":
        from lookhere.bench.cluster import RayEngine, connected

        with connected(address or "auto"):
            yield RayEngine(workers, per_device, devices, max(training.threads for training in options))
        return
    from lookhere.bench.local import LocalEngine

    yield LocalEngine(workers, per_device, devices.pop() if len(devices) == 1 else "cpu")


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, for example 1/4")
    return int(found[1]), int(found[2])


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        listed = [{"label": entry.label, "axes": entry.assignment} for entry in plan.entries]
        content = {"title": plan.title, "runs": listed, "notes": plan.notes, "missing": plan.missing}
        print(json.dumps(content, indent=1))
        return
    print(plan.title)
    for axis, values in plan.axes.items():
        print(f"  {axis}: {'; '.join(map(str, values))}")
    print(f"{len(plan.entries)} trainings")
    for note in plan.notes:
        print(f"note: {note}")
    for what in plan.missing.values():
        print(f"missing: {what}")


def _show_status(found: Status) -> None:
    from lookhere.progress import clock

    print(found.title)
    print(
        f"{found.done} of {found.runs} done, {len(found.running)} running, {len(found.failed)} failed, "
        f"{len(found.left)} left"
    )
    for one in found.running:
        epoch = f"epoch {one['epoch']} of {one['epochs']}" if one["epochs"] else "starting"
        stage = f"{one['stage']}, " if one["stage"] not in (None, "classify") else ""
        print(f"running: {one['label']}: {stage}{epoch}, {clock(one['seconds'])}")
    for failed in found.failed[:SHOWN]:
        print(f"failed: {failed['label']}: {failed['reason']}")
    if len(found.failed) > SHOWN:
        print(f"… and {len(found.failed) - SHOWN} more failed (--json lists all)")
    if found.seconds_left is not None and found.done < found.runs:
        at_once = max(1, len(found.running))
        print(f"about {clock(found.seconds_left)} left, {at_once} training{'s' if at_once > 1 else ''} at a time")
