"""Plans: what their axes multiply to, and one clear line for everything that can be wrong, before anything runs."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lookhere.bench.plan import Plan, read_plan
from lookhere.bench.plan_file import SECTIONS, PlanFile
from lookhere.cli import main
from lookhere.errors import UsageError
from lookhere.training.config import load_config

RECIPES = Path(__file__).parent.parent / "recipes"
PAPER = Path(__file__).parent.parent.parent / "shared" / "reference" / "paper.md"

HEAD = """
title = "A plan"
[backbone]
name = "test_resnet"
weights = "random"
[data]
size = 48
[sets.iris]
data.manifest = "iris/manifest.csv"
[sets.face]
"""
PLAN = (
    HEAD
    + """
[axes]
seed = [0, 1]
set = ["iris", "face"]
method = ["cross-entropy", "sage"]
"method.views.sigma" = [5, 10]
"""
)


def plan(folder: Path, text: str, **arguments: Any) -> Plan:
    (folder / "plan.toml").write_text(text)
    return read_plan(folder / "plan.toml", **arguments)


def assignments(found: Plan) -> list[dict[str, Any]]:
    return [entry.assignment for entry in found.entries]


def test_the_product_of_the_axes_is_the_plan_and_the_first_varies_slowest(tmp_path: Path) -> None:
    found = plan(tmp_path, HEAD + '[axes]\nseed = [3, 1]\n"training.epochs" = [2, 4, 6]\nset = ["face", "iris"]\n')
    axes = {"seed": [3, 1], "training.epochs": [2, 4, 6], "set": ["face", "iris"]}
    assert assignments(found) == [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for entry in found.entries:
        assert entry.config.seed == entry.assignment["seed"]
        assert entry.config.training.epochs == entry.assignment["training.epochs"]
        assert (entry.config.data.size, entry.config.backbone.name) == (48, "test_resnet")
    assert found.entries[0].label == "face · epochs 2 · seed 3"
    assert not found.notes


def test_an_axis_that_a_method_lacks_is_left_out_for_it(tmp_path: Path) -> None:
    found = plan(tmp_path, PLAN.replace('"sage"]', '"sage", "gaze-gnn"]\nbackbone = ["resnet18", "resnet34"]'))
    count: dict[str, int] = {}
    for entry in found.entries:
        count[entry.assignment["method"]] = count.get(entry.assignment["method"], 0) + 1
    assert count == {"cross-entropy": 2 * 2 * 2, "sage": 2 * 2 * 2 * 2, "gaze-gnn": 2 * 2}
    assert {e.config.backbone.name for e in found.entries if e.assignment["method"] == "gaze-gnn"} == {"pvig_ti"}
    assert len(found.notes) == 2
    assert "axes.method.views.sigma: does not apply to cross-entropy, gaze-gnn, trained once without it" in found.notes
    maps = plan(tmp_path, PLAN.replace("method.views.sigma", "saliency.missing").replace("5, 10", '"skip", "uniform"'))
    assert sum(e.assignment["method"] == "cross-entropy" for e in maps.entries) == 4  # which reads no maps


def test_methods_have_options_of_their_own_and_labels_stand_side_by_side(tmp_path: Path) -> None:
    text = PLAN.replace('"sage"]', '"sage", {name = "sage", label = "SAGE, K=31", views.kernel = 31}]')
    text += "[methods.sage]\ntau = 3\ntraining.learning_rate = 0.01\n"
    found = plan(tmp_path, text, only=["seed=0", "set=iris", "method.views.sigma=5"])
    made = {entry.assignment["method"]: entry.config for entry in found.entries}
    kernels = {label: config.method.views.kernel for label, config in made.items() if config.method.name == "sage"}
    assert kernels == {"sage": 7, "SAGE, K=31": 31}
    assert {made[label].method.tau for label in kernels} == {3.0}
    assert {made[label].training.learning_rate for label in kernels} == {0.01}


def test_the_base_and_what_changes_it_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        '[training]\nepochs = 7\nbatch_size = 9\n[method]\nname = "sage"\nalpha = 0.25\n[method.views]\nkernel = 9\n'
    )
    text = 'title = "t"\nconfig = "base.toml"\n[training]\nbatch_size = 11\n[axes]\nmethod = ["sage", "cyborg"]\n'
    text += '[methods.sage]\nviews.kernel = 13\n[[adjust]]\nwhen = { method = "cyborg" }\noptions = { alpha = 0.75 }\n'
    sage, cyborg = (entry.config for entry in plan(tmp_path, text, settings=["training.momentum=0.5"]).entries)
    assert (sage.method.alpha, sage.method.views.kernel, cyborg.method.alpha) == (0.25, 13, 0.75)
    for config in (sage, cyborg):
        found = (config.training.epochs, config.training.batch_size, config.training.momentum)
        assert found == (7, 11, 0.5)


def test_conditions_leave_out_and_adjust(tmp_path: Path) -> None:
    text = PLAN + '[[exclude]]\nmethod = "sage"\nset = ["face"]\n"method.views.sigma" = 5\n'
    text += '[[adjust]]\nwhen = { set = "iris", seed = 1 }\noptions = { training.batch_size = 4 }\n'
    found = plan(tmp_path, text)
    everything = assignments(plan(tmp_path, PLAN))
    gone = [a for a in everything if (a["method"], a["set"], a.get("method.views.sigma")) == ("sage", "face", 5)]
    assert len(gone) == 2
    assert assignments(found) == [assignment for assignment in everything if assignment not in gone]
    for entry in found.entries:
        adjusted = (entry.assignment["set"], entry.assignment["seed"]) == ("iris", 1)
        assert entry.config.training.batch_size == (4 if adjusted else 20)


def test_a_value_listed_twice_is_taken_once_and_told(tmp_path: Path) -> None:
    found = plan(tmp_path, PLAN.replace("[0, 1]", "[0, 1, 0]"))
    assert assignments(found) == assignments(plan(tmp_path, PLAN))
    assert "axes.seed: a value is listed twice" in found.notes[0]


def test_paths_are_relative_to_the_plan_and_manifests_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "iris").mkdir()
    (tmp_path / "iris" / "manifest.csv").touch()
    (tmp_path / "other.csv").touch()
    text = PLAN.replace("[sets.face]", '[sets.face]\nsaliency.folder = "maps"')
    found = plan(tmp_path, text)
    by_set = {entry.assignment["set"]: entry.config for entry in found.entries}
    assert by_set["iris"].data.manifest == tmp_path / "iris" / "manifest.csv"
    assert by_set["face"].saliency.folder == tmp_path / "maps"
    assert found.missing == {"face": "sets.face: has no manifest; give --data face=MANIFEST"}
    assert plan(tmp_path, text, only=["set=iris"]).missing == {}
    given = plan(tmp_path, text, data=[f"face={tmp_path / 'other.csv'}"])
    assert {e.config.data.manifest for e in given.entries if e.assignment["set"] == "face"} == {tmp_path / "other.csv"}
    assert given.missing == {}
    lost = plan(tmp_path, text, data=["face=nowhere.csv"])
    assert re.fullmatch(r"sets.face: no file .*nowhere.csv; give --data face=MANIFEST", lost.missing["face"])
    alone = plan(tmp_path, 'title = "t"\n[axes]\nseed = [0]\n', data=[str(tmp_path / "other.csv")])
    assert alone.entries[0].config.data.manifest == tmp_path / "other.csv"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title", "titel", ["titel: there is no such option; did you mean 'title'?"]),
        ("[data]", "[reliance]\nblurr = 0.1\n[data]", ["reliance.blurr: there is no such option; did you mean"]),
        ("[axes]", "[axis]", ["axis: there is no such option; did you mean 'axes'?"]),
        ("size = 48", "sise = 48", ["data.sise: there is no such option; did you mean 'data.size'?"]),
        ("size = 48", "size = 4", ["data.size: expected integer ≥ 16 and ≤ 1024, got 4"]),
        ("[5, 10]", "[5, -1]", ["method.views.sigma: expected number > 0 and ≤ 200, got -1"]),
        ("[5, 10]", "5", ["axes.method.views.sigma: expected a list"]),
        ("views.sigma", "views.sigmer", ["axes.method.views.sigmer: there is no such option; did you mean"]),
        ('"sage"]', '"cyborg"]', ["axes.method.views.sigma: there is no such option of these methods", "sage"]),
        ('"sage"]', '"sagee"]', ["axes.method: there is no method 'sagee'; did you mean 'sage'?"]),
        ('"sage"]', '{name = "sage", alhpa = 1}]', ["method.alhpa: there is no such option; did you mean"]),
        ('"sage"]', '"sage", {name = "sage", tau = 3}]', ["'sage' stands for two methods; give each a label"]),
        ('"sage"]', "7]", ["axes.method: expected names", "got 7"]),
        ('"iris", "face"]', '"irsi"]', ["axes.set: there is no [sets.irsi]; did you mean 'iris'?"]),
        ("data.manifest =", "manifest =", ["sets.iris: manifest is no option of data or saliency"]),
        ("data.manifest =", "data.manifes =", ["data.manifes: there is no such option; did you mean 'data.manifest'?"]),
        ("seed =", "sed =", ["axes.sed: there is no such option; did you mean 'seed'?"]),
        ("seed =", '"training.threads" =', ["axes.training.threads: is no axis", "changes no result"]),
        ("set =", '"data.manifest" =', ["axes.data.manifest: is no axis; name data sets under [sets]"]),
        ("method = [", '"method.name" = [', ["axes.method.name: is no axis; write 'method'"]),
        ('"method.views.sigma"', "method.views.sigma", ["cannot be read as TOML", "in quotes"]),
        ("test_resnet", "test_resnett", ["backbone.name: timm has no model 'test_resnett'; did you mean"]),
        ("[data]", "[methods.sage]\nviews.sigma = 3\n[data]", ["method sage: method.views.sigma is an axis"]),
        ("[data]", "[methods.sgae]\ntau = 3\n[data]", ["methods: there is no method 'sgae'; did you mean 'sage'?"]),
        ("[data]", "[method]\ntau = 3\n[data]", ["method: options of one method; give its name here"]),
        ("[data]", '[method]\nname = "mentor"\n[data]', ["'mentor' is not in axes.method"]),
        ("[data]", '[[exclude]]\nmethods = "sage"\n[data]', ["exclude 1: 'methods' is not an axis", "'method'?"]),
        (
            "[data]",
            '[[exclude]]\nset = "fase"\n[data]',
            ["exclude 1: set 'fase' is not in axes.set", "'face'?"],
        ),
        ("[data]", "[[exclude]]\nseed = [0, 1]\n[data]", ["no training is left"]),
        ("[data]", "[[adjust]]\nwhen = { seed = 0 }\n[data]", ["adjust.0.options: is required"]),
        (
            "[data]",
            "[[adjust]]\nwhen = { seed = 0 }\noptions = { training.epoch = 3 }\n[data]",
            ["training.epoch: there is no such option; did you mean 'training.epochs'?"],
        ),
        (
            "[data]",
            '[[published]]\nsource = "x"\nn = 5\nnumbers = [{ method = "sage", mean = 1, sd = 0 }]\n[data]',
            ["published, x, sage: fits 4 groups of trainings; name more axes"],
        ),
        (
            "[data]",
            '[[published]]\nsource = "x"\nn = 5\nnumbers = [{ model = "sage", mean = 1, sd = 0 }]\n[data]',
            ["published, x: 'model' is not an axis"],
        ),
        (
            "[data]",
            '[[published]]\nsource = "x"\nn = 5\nmetric = "aurok"\nnumbers = [{ mean = 1, sd = 0 }]\n[data]',
            ["there is no metric 'aurok'; did you mean 'auroc'?"],
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(old, new, expected, tmp_path: Path, capsys) -> None:
    assert old in PLAN
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new, 1))
    assert main(["bench", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for part in expected:
        assert part in error
    assert all(str(tmp_path / "plan.toml") in line for line in error.splitlines())
    assert len(error.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"data": ["fcae=x.csv"]}, "--data fcae=x.csv: expected NAME=MANIFEST, with NAME one of iris, face"),
        ({"only": ["seed"]}, "--only seed: expected AXIS=VALUE"),
        ({"only": ["sed=1"]}, "--only: 'sed' is not an axis of this plan; did you mean 'seed'?"),
        ({"only": ["method=sagee"]}, "--only: method 'sagee' is not in axes.method; did you mean 'sage'?"),
        ({"settings": ["training.epoch=1"]}, "training.epoch: there is no such option"),
        ({"settings": ["seed=1"]}, "--set: seed is an axis"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, list[str]], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        plan(tmp_path, PLAN, **arguments)


def test_a_plan_is_shown_without_its_data(tmp_path: Path, capsys) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    assert main(["bench", "status", str(tmp_path / "plan.toml")]) == 0
    shown = capsys.readouterr().out
    assert "12 trainings" in shown
    assert "missing: sets.face: has no manifest; give --data face=MANIFEST" in shown
    assert main(["bench", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--data iris=MANIFEST" in error
    assert "--data face=MANIFEST" in error
    assert not (tmp_path / "out").exists()
    assert main(["bench", "run", str(tmp_path / "none.toml"), "--out", "x"]) == 2
    assert "no file" in capsys.readouterr().err


def test_a_plan_may_change_every_section_of_a_configuration() -> None:
    assert set(SECTIONS) <= set(PlanFile.model_fields)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table?.toml")), ids=lambda path: path.stem)
def test_recipes_are_the_papers_protocol(path: Path) -> None:
    found = read_plan(path)
    assert set(found.missing) == {"iris", "face", "chest"}
    assert not [note for note in found.notes if note.startswith("published")]
    protocol = load_config(RECIPES / "paper.toml", flags={"data.manifest": "x"})
    for entry in found.entries:
        assert entry.config.training == protocol.training
        assert entry.config.data.size == 224
        if entry.config.method.name == "sage":
            options = {axis: value for axis, value in entry.assignment.items() if axis.startswith("method.")}
            flags = {"data.manifest": "x", **options}
            assert entry.config.method == load_config(RECIPES / "paper.toml", flags=flags).method
    trainings = re.search(r"costs (\d+) trainings", path.read_text())
    assert trainings is not None
    assert int(trainings[1]) == len(found.entries)


METHOD_NAMES = {
    "baseline": "cross-entropy",
    "cyborg": "cyborg",
    "unet+gaze": "unet-gaze",
    "gaze-gnn": "gaze-gnn",
    "mentor": "mentor",
    "gg-cam": "gg-cam",
    "boyd": "blur-augmentation",
    "sage": "sage",
}
BACKBONES = {
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "efficientnetb7": "tf_efficientnet_b7",
    "swint": "swin_tiny_patch4_window7_224",
}


def printed(number: int) -> dict[tuple[str, ...], tuple[float, float]]:
    """What a table of the paper says: (method, backbone or option, set) -> mean and standard deviation."""
    lines = PAPER.read_text(encoding="utf-8").split(f"Table {number}: ")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    ]
    numbers = {}
    for cells in rows[2:]:
        names = [cell for cell in cells if "±" not in cell]
        values = [tuple(float(part) for part in cell.split("±")) for cell in cells if "±" in cell]
        if number in (1, 2, 3):
            names[0] = METHOD_NAMES[re.split(r"[ (]", names[0].lower().strip("*"))[0]]
        if number == 2:
            names[1] = BACKBONES[names[1].lower().replace("-", "")]
        if number == 3:
            for source, value in zip(("given", "flipped"), values, strict=True):
                numbers[names[0], names[1].lower(), source] = value
            assert float(names[2]) == pytest.approx(values[0][0] - values[1][0], abs=1e-9)
        else:
            for data, value in zip(("iris", "face", "chest"), values, strict=True):
                numbers[(*names, data)] = value
    return numbers


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not beside this checkout")
@pytest.mark.parametrize(("number", "count"), [(1, 24), (2, 69), (3, 24), (4, 9), (5, 12)])
def test_recipes_hold_the_papers_numbers(number: int, count: int) -> None:
    expected = printed(number)
    assert len(expected) == count
    (published,) = tomllib.loads((RECIPES / f"table{number}.toml").read_text())["published"]
    assert published["n"] == 5
    assert published["source"].endswith(f"table {number}")
    found = {}
    for entry in published["numbers"]:
        method = entry.get("method", "")
        option = entry.get("backbone", "")
        if isinstance(method, dict):
            method, option = "", str(method.get("tau") or method["views"]["sigma"])
        names = (method, option, entry["set"], entry.get("saliency", {}).get("source", ""))
        key = tuple(name for name in names if name)
        assert key not in found
        found[key] = (entry["mean"], entry["sd"])
    assert found == expected
