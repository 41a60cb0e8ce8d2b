"""Configuration: one dotted name for every option, in TOML, in --set and in errors."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lookhere.errors import UsageError
from lookhere.methods import METHODS
from lookhere.training.config import Config, list_options, load_config

DATA = {"data.manifest": "m.csv"}
RECIPES = [
    recipe
    for recipe in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
    if "[axes]" not in recipe.read_text()  # plans are tested with plans
]


def test_defaults_are_the_papers_protocol() -> None:
    config = load_config(flags=DATA)
    t = config.training
    assert (t.optimizer, t.learning_rate, t.momentum, t.weight_decay) == ("sgd", 0.005, 0.9, 1e-6)
    assert (t.decay_every, t.decay, t.batch_size, t.epochs, t.select) == (12, 0.1, 20, 50, "val_accuracy")
    assert (config.data.size, config.backbone.weights) == (224, "pretrained")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(recipe: Path) -> None:
    assert load_config(recipe, flags=DATA).data.manifest == Path("m.csv").absolute()


def test_settings_beat_the_file_and_flags_beat_settings(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('seed = 1\n[method]\nname = "sage"\nalpha = 0.1\n[training]\nepochs = 3\nbatch_size = 7\n')
    config = load_config(
        file,
        ["training.epochs=4", "data.size=64", "method.margin=batch", 'data.splits={test = "val"}'],
        {**DATA, "seed": 9},
    )
    assert (config.seed, config.training.epochs, config.training.batch_size) == (9, 4, 7)
    assert (config.method.alpha, config.method.margin, config.data.splits) == (0.1, "batch", {"test": "val"})
    other = load_config(file, flags={**DATA, "method.name": "cross-entropy"})
    assert other.method == METHODS["cross-entropy"].Options(name="cross-entropy")
    assert other.training.epochs == 3


def test_toml_round_trip_keeps_the_identity() -> None:
    config = load_config(settings=["method.margin=0.3", "method.views.kernel=41", "data.positive=attack"], flags=DATA)
    again = Config.model_validate(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.identity("x") == config.identity("x")


def test_identity_is_what_decides_the_result(tmp_path: Path) -> None:
    base = load_config(flags=DATA)

    def identity(*settings: str, seed: bool = True, data: str = "x", **flags: object) -> str:
        return load_config(None, settings, {**DATA, **flags}).identity(data, seed=seed)

    assert identity("training.threads=1", "training.device=cpu", "data.root=elsewhere") == base.identity("x")
    assert load_config(flags={"data.manifest": "copy/m.csv"}).identity("x") == base.identity("x")
    assert identity(seed=False) == load_config(flags={**DATA, "seed": 5}).identity("x", seed=False)
    weights = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, content in zip(weights, (b"a", b"b", b"a"), strict=True):
        file.write_bytes(content)
    a, b, c = (identity(f"backbone.weights={file}") for file in weights)
    assert a == c
    different = [a, b, base.identity("x"), identity(data="y"), identity("seed=1"), identity("method.alpha=0.4")]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epoch=3", "training.epoch: there is no such option; did you mean 'training.epochs'?"),
        ("method.sigma=3", "method.sigma: there is no such option; did you mean 'method.views.sigma'?"),
        ("views.degrade=swap", "views: there is no such option"),
        ("method.alpha=1.5", "method.alpha: expected number ≥ 0 and ≤ 1, got 1.5"),
        ("method.margin=foo", "method.margin: expected sample|batch|number ≥ 0 and ≤ 2, got 'foo'"),
        ("method.views.kernel=6", "kernel: 6 is even; a blur needs a centre pixel, so take 7"),
        ("training.learning_rate=-1", "training.learning_rate: expected number > 0 and ≤ 10, got -1"),
        ("training.select=test_auroc", "training.select: expected val_accuracy|val_auroc|last, got 'test_auroc'"),
        ("method.name=sge", "method.name: there is no method 'sge'; did you mean 'sage'?"),
        ("method.margin=nan", "method.margin: expected sample|batch|number ≥ 0 and ≤ 2"),
        ("method.views.kernel=501", "method.views.kernel: expected integer ≥ 3 and ≤ 255, got 501"),
        ("data.manifest=other.csv", "data.manifest: given twice, as 'm.csv' and by --set as 'other.csv'"),
        ("seed", "--set seed: expected name=value"),
        ("seed.x=1", "seed: expected integer"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(settings=[setting], flags=DATA)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_that_do_not_go_together_are_refused() -> None:
    for settings, message in (
        (["data.size=48", "method.views.kernel=97"], "method.views.kernel: 97 does not fit images of 48 pixels"),
        (["training.batch_size=1", "method.views.degrade=swap"], "training.batch_size: .*needs another image"),
        (["seed=1", "seed=2"], "--set seed: given twice, as 1 and '2'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_config(settings=settings, flags=DATA)


def test_all_that_is_wrong_comes_at_once_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_config(settings=["training.epochs=0", "method.alpha=2", "backbone.nme=x"])
    assert [line.partition(":")[0] for line in sorted(str(error.value).splitlines())] == [
        "backbone.nme",
        "data.manifest",
        "method.alpha",
        "training.epochs",
    ]
    (tmp_path / "bad.toml").write_text("a = = 1")
    for file, message in ((tmp_path / "bad.toml", "cannot be read as TOML"), (tmp_path / "none.toml", "no file")):
        with pytest.raises(UsageError, match=message):
            load_config(file)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_a_range_a_default_and_help(method: str) -> None:
    options = list_options(method)
    assert all(option.kind and option.help for option in options), [o.name for o in options if not (o.kind and o.help)]
    for option in options:
        if option.default not in ("required", "none", "", "{}") and option.name != "method.name":
            load_config(settings=[f"{option.name}={option.default}"], flags={**DATA, "method.name": method})
