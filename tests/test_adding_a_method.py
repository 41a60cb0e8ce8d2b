"""The page on adding a method, followed word by word on a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the package with what the page adds to it."""
    shutil.copytree(
        ROOT / "src" / "lookhere", tmp_path / "src" / "lookhere", ignore=shutil.ignore_patterns("__pycache__")
    )
    for code in blocks("python"):
        path = tmp_path / code.splitlines()[0].removeprefix("# ")
        assert not path.exists()
        path.write_text(code, encoding="utf-8")
    (line,) = blocks("diff")
    before = "".join(row[1:] for row in line.splitlines(keepends=True) if not row.startswith("+"))
    after = "".join(row[1:] for row in line.splitlines(keepends=True))
    table = tmp_path / "src" / "lookhere" / "methods" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(before) == 1
    table.write_text(text.replace(before, after), encoding="utf-8")
    return tmp_path


def run(command: list[str], checkout: Path) -> str:
    """Return what a command prints, with the copy in the package's place."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_adds_a_method_that_trains(checkout: Path) -> None:
    (script,) = blocks("sh")
    commands = [shlex.split(line) for line in script.replace("\\\n", "").splitlines()]
    assert {command[0] for command in commands} == {"lookhere"}
    printed = [run([sys.executable, "-m", *command], checkout) for command in commands]
    assert "hbcam (Piland, Czajka & Sweet, 2023): guidance acts on map" in printed[0]
    assert re.search(r"method\.lam\s+number ≥ 0 .* 1\.0\s+Weight of the squared difference", printed[0])

    folder = checkout / "runs" / "hbcam-0"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["method"] == "hbcam"
    (line,) = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    parts = json.loads(line)["train"]
    assert parts["entropy_gap"] > 0
    assert parts["total"] == pytest.approx(parts["cross_entropy"] + 0.5 * parts["entropy_gap"])


def test_the_method_is_short_and_clean(checkout: Path) -> None:
    (code,) = blocks("python")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    path = checkout / code.splitlines()[0].removeprefix("# ")
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(path)]
        assert run(command, checkout)


def test_what_the_page_names_is_there() -> None:
    paths = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", PAGE)
    modules = re.findall(r"`(\w+\.py)`", PAGE)
    assert len(paths) > 5
    for name in (*paths, *(f"src/lookhere/{name}" for name in modules)):
        new = "hbcam" in name
        found = (ROOT / name).exists() or (ROOT / "src/lookhere/methods" / Path(name).name).exists()
        assert found != new, name
