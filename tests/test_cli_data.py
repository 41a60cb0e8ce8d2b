"""The verbs that bring data in, as people type them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lookhere.cli as cli
from lookhere import cli_data
from lookhere.data.importers import IMPORTERS


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    if all(command.name != "import" for command in cli.app.registered_commands):
        cli_data.register(cli.app, cli.data_app)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_the_command_line_goes_from_an_example_to_a_training(run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = run("data")
    assert code == 0
    assert all(f"\n{name}: " in f"\n{out}" for name in IMPORTERS)
    code, out, _ = run("data", "show", "fixations")
    assert code == 0
    assert "image-px|image-fraction|screen-px|screen-fraction" in out
    code, out, _ = run("data", "example", "mask-folder", "--out", tmp_path / "my example")
    assert code == 0
    command = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    code, out, _ = run(*command[1:])
    assert code == 0
    training = shlex.split(out.splitlines()[-1])
    assert training == [
        "lookhere",
        "train",
        "--data",
        f"{tmp_path}/my example-imported/manifest.csv",
        "--method",
        "sage",
    ]
    small = ["--backbone", "resnet18", "--weights", "random", "--out", str(tmp_path / "run")]
    settings = ["--set", "training.epochs=1", "--set", "data.size=32", "--set", f"data.cache={tmp_path / 'cache'}"]
    code, _, err = run(*training[1:], *small, *settings)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maskfolder", "x", "--out", "o"], "there is no source 'maskfolder'; did you mean 'mask-folder'?"),
        (["mask-folder", "x"], "--out: is required"),
        (["mask-folder", "x", "--out", "o"], "images: is required; expected path"),
        (["mask-folder", "x", "--out", "o", "--set", "image=y"], "there is no such option; did you mean 'images'?"),
        (["mask-folder", "x", "--out", "o", "--set", "merge"], "expected name=value, for example merge=union"),
        (["mask-folder", "x", "--out", "o", "--set", "merge=max"], "expected mean|union|agreement, got 'max'"),
        (["mask-folder", "x", "--out", "o", "--set", "splits=[1,1,0]"], "add up to 1"),
    ],
)
def test_slips_on_the_command_line(run: Callable[..., Any], arguments: list[str], message: str) -> None:
    code, _, err = run("import", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
