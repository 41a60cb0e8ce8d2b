"""Finished trainings on disk: found below folders, and read back."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookhere.errors import DataError, UsageError
from lookhere.evaluation.folds import Trial
from lookhere.evaluation.scores import Scores, read_scores

FORMAT = 1
RELIANCE_KEYS = ("weights_sha256", "data", "options", "bootstrap", "splits", "subsets")
RESULT_KEYS = ("method", "backbone", "seed", "classes", "positive", "identity", "group", "data", "evaluation")


@dataclass(frozen=True)
class Run:
    """A finished training, as its folder tells it."""

    folder: Path
    result: dict[str, Any]
    """``result.json``: method, seed, identity, data, evaluation."""
    config: dict[str, Any]
    """``run.toml``: the resolved configuration, by section."""
    metrics: list[dict[str, Any]]
    """``metrics.jsonl``: one entry per epoch."""
    environment: dict[str, Any]
    """``environment.json``: versions, device, command."""
    reliance: dict[str, Any] | None = None
    """``reliance.json``: AUROC on altered test images; none if it was not measured."""

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.result["seed"])

    @property
    def fold(self) -> int | None:
        """The fold of a cross-validation that the run is tested on, if it is one of several that can be gathered."""
        folds = self.config.get("protocol", {}).get("kind") == "group-folds" and "whole_sha256" in self.result["data"]
        return int(self.config["protocol"].get("fold", 0)) if folds else None

    @property
    def trial(self) -> Trial:
        """What trainings of two groups are paired by."""
        return Trial(self.seed, self.fold or 0)

    @property
    def data_sha256(self) -> str:
        """The identity of the decoded data that the run was trained and tested on."""
        return str(self.result["data"]["sha256"])

    def scores(self) -> Scores:
        """Read ``predictions.csv``.

        Raises:
            DataError: the file is damaged, or is not the one that the run wrote.
        """
        path = self.folder / "predictions.csv"
        expected = self.result.get("files", {}).get(path.name)
        if expected and path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DataError(f"{path}: changed since the run finished (SHA-256 {found[:12]}…, not {expected[:12]}…)")
        return read_scores(path, positive=self.result["positive"])


@dataclass(frozen=True)
class Found:
    """What lies below the searched folders."""

    runs: list[Run]
    unfinished: dict[Path, int]
    """Folder of a run without ``result.json`` → epochs it has done."""
    duplicates: dict[Path, Path]
    """Folder of a run that repeats another one's identity, and is left out → the folder that is kept."""


def find_runs(paths: Iterable[Path]) -> Found:
    """Read every run folder at or below ``paths``; a folder with a ``run.toml`` or a ``result.json`` is one.

    Raises:
        UsageError: a path that is not a folder, or no run at all.
        DataError: damaged files of finished runs, all of them at once.
    """
    paths = [Path(path) for path in paths]
    if missing := [str(path) for path in paths if not path.is_dir()]:
        raise UsageError(f"{', '.join(missing)}: no such folder; expected run folders, or a folder that holds them")
    folders = sorted({Path(folder) for path in paths for folder in _run_folders(path)}, key=lambda p: p.parts)
    problems: list[str] = []
    kept: dict[str, Run] = {}
    unfinished: dict[Path, int] = {}
    duplicates: dict[Path, Path] = {}
    for folder in folders:
        if not (folder / "result.json").is_file():
            metrics = folder / "metrics.jsonl"
            unfinished[folder] = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
            continue
        try:
            run = _read_run(folder)
        except DataError as error:
            problems += error.problems
            continue
        first = kept.setdefault(run.result["identity"], run)
        if first is not run:
            duplicates[folder] = first.folder
    if problems:
        raise DataError(problems)
    if not kept and not unfinished:
        raise UsageError(f"{', '.join(map(str, paths))}: no run found; a run folder holds run.toml and result.json")
    return Found(list(kept.values()), unfinished, duplicates)


def _run_folders(path: Path) -> Iterable[str]:
    for folder, below, files in os.walk(path):
        if "run.toml" in files or "result.json" in files:
            below.clear()
            yield folder


def _read_run(folder: Path) -> Run:
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], Any], kind: type) -> Any:
        try:
            value = parse((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            problems.append(f"{folder / name}: missing from a finished run; restore it, or train again")
        except (ValueError, OSError) as error:
            problems.append(f"{folder / name}: damaged ({error}); restore it, or train again")
        else:
            if isinstance(value, kind):
                return value
            problems.append(f"{folder / name}: holds a {type(value).__name__}, expected a {kind.__name__}")
        return kind()

    result = read("result.json", json.loads, dict)
    config = read("run.toml", tomllib.loads, dict)
    environment = read("environment.json", json.loads, dict)
    reliance = read("reliance.json", json.loads, dict) if (folder / "reliance.json").exists() else None
    metrics = read("metrics.jsonl", lambda text: [json.loads(line) for line in text.split("\n") if line], list)
    if not problems:
        if result.get("format") != FORMAT:
            found = result.get("format")
            problems.append(f"{folder / 'result.json'}: format {found!r}, this version of lookhere reads {FORMAT}")
        elif absent := [key for key in RESULT_KEYS if key not in result]:
            problems.append(f"{folder / 'result.json'}: damaged, without {', '.join(absent)}; train again")
        elif reliance is not None and (why := _unusable(reliance, result)):
            problems.append(f"{folder / 'reliance.json'}: {why}; measure again (lookhere evaluate {folder} --reliance)")
    if problems:
        raise DataError(problems)
    return Run(folder, result, config, metrics, environment, reliance)


def _unusable(reliance: dict[str, Any], result: dict[str, Any]) -> str:
    """Return why a reliance does not belong to a result, or an empty string."""
    if reliance.get("format") != FORMAT:
        return f"format {reliance.get('format')!r}, this version of lookhere reads {FORMAT}"
    if absent := [key for key in RELIANCE_KEYS if key not in reliance]:
        return f"damaged, without {', '.join(absent)}"
    if reliance["weights_sha256"] != result.get("files", {}).get("weights.safetensors"):
        return "was measured with other weights than the run's"
    return ""
