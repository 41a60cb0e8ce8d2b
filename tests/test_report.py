from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tomlkit
from PIL import Image
from scipy.stats import ttest_rel

from lookhere.bench import tables
from lookhere.bench.groups import groups
from lookhere.bench.report import write_report
from lookhere.bench.store import find_runs
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.data.protocol import ProtocolOptions
from lookhere.errors import DataError, UsageError
from lookhere.evaluation.evaluate import evaluate
from lookhere.evaluation.scores import Scores, write_scores

SEEDS = (0, 1, 2)
KNOWN, NEW, ODD = "print $x_1$", '<script>alert("new")</script>', '"><img src=x onerror=alert(1)>'
LONG = "an_unreasonably_long_name_of_a_type_without_any_blank_" * 3
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


def make_data(folder: Path) -> DataOptions:
    """Write 92 images of 24 x 24 pixels with maps, whose names and types would be markup if they were not escaped."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["image,label,split,saliency,type"]
    for split, types in {"train": [KNOWN], "val": [KNOWN], "test": [KNOWN, NEW, ODD, LONG]}.items():
        for i in range(10):
            for type_ in ["live", *types]:
                name = f"<b>{split}{len(rows)}'&.png"
                Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(folder / name)
                quoted = '"' + type_.replace('"', '""') + '"'
                label = "live" if type_ == "live" else "attack"
                rows.append(f"{name},{label},{split},{'map.png' if i < 2 else ''},{quoted}")
    ramp = np.tile(np.linspace(0, 255, 24).astype(np.uint8), (24, 1))
    Image.fromarray(ramp).save(folder / "map.png")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return DataOptions(manifest=folder / "manifest.csv", size=24, cache=folder / "cache")


def make_run(
    folder: Path,
    data: DataOptions,
    dataset: Dataset,
    *,
    method: str,
    seed: int,
    skill: float,
    lr: float = 0.005,
    protocol: ProtocolOptions | None = None,
    whole: str = "",
    name: str = "odd",
) -> None:
    """Write a finished run's folder by its contract, with scores from a seeded generator.

    ``protocol`` is what made the splits of ``dataset``, ``whole`` identifies the data that its folds divide, and
    ``name`` is what people call it.
    """
    fold = protocol.fold if protocol else 0
    rng = np.random.default_rng([seed, len(method), *([fold] if fold else [])])
    manifest = dataset.manifest
    known = set(np.array(manifest.type)[manifest.split == "train"])
    scores = Scores(
        classes=manifest.classes,
        id=np.array(manifest.image, dtype=object),
        split=manifest.split.astype(object),
        label=manifest.label,
        type=np.array(manifest.type, dtype=object),
        type_seen=np.array(["yes" if name in known else "no" for name in manifest.type], dtype=object),
        group=np.full(len(manifest), "", dtype=object),
        logits=rng.normal(0, 1, (len(manifest), 2)) + skill * np.eye(2)[manifest.label],
    )
    folder.mkdir(parents=True)
    write_scores(folder / "predictions.csv", scores)
    config = {
        "seed": seed,
        "data": {"manifest": str(data.manifest), "size": data.size, "cache": str(data.cache)},
        "saliency": {"missing": "skip"},
        "backbone": {"name": "resnet18"},
        "method": {"name": method} | ({"views": {"degrade": "blur", "kernel": 7}} if method == "sage" else {}),
        "training": {"epochs": 4, "lr": lr},
    }
    content = config
    if protocol:
        config["protocol"] = protocol.model_dump(mode="json", exclude_none=True)
        content = config | {"protocol": protocol.model_copy(update={"fold": 0}).model_dump(mode="json")}
    group = hashlib.sha256(json.dumps([content | {"seed": None}, whole, name]).encode()).hexdigest()
    terms = {"cross_entropy": 1.0, "logit_alignment": 0.5} if method == "sage" else {"cross_entropy": 1.0}
    splits = list(manifest.split) if protocol else ["train"] * 20 + ["test"] * 50
    counts = {split: splits.count(split) for split in dict.fromkeys(splits)}
    metrics = [
        {
            "stage": "classify",
            "epoch": epoch,
            "learning_rate": lr,
            "seconds": 1.0,
            "train": {"total": 1 / epoch} | {name: value / epoch for name, value in terms.items()},
            "val": {"loss": 1 / epoch, "accuracy": 1 - 0.4 / epoch, "auroc": None if epoch == 1 else 0.9},
        }
        for epoch in range(1, 5)
    ]
    environment = {
        "lookhere": "0.1.0",
        "python": "3.11",
        "platform": "Linux",
        "cpu": "a processor",
        "threads": 2,
        "device": "cpu",
        "packages": {"torch": "2.10", "timm": "1.0.20"},
        "git": None,
        "command": f"lookhere train --method {method} --seed {seed}",
    }
    result = {
        "format": 1,
        "method": method,
        "backbone": "resnet18",
        "seed": seed,
        "classes": list(manifest.classes),
        "positive": manifest.positive,
        "positive_reason": manifest.positive_reason,
        "identity": f"{group}{seed}.{fold}",
        "group": group,
        "data": {"sha256": dataset.sha256, "name": name, "synthetic": True, "counts": counts}
        | ({"whole_sha256": whole} if whole else {}),
        "selected_epoch": 3,
        "select": "val_accuracy",
        "epochs": 4,
        "parameters": 11_177_538,
        "seconds": 4.0,
        "peak_memory_mb": None,
        "evaluation": evaluate(scores, positive=manifest.positive, bootstrap=20),
        "files": {"predictions.csv": hashlib.sha256((folder / "predictions.csv").read_bytes()).hexdigest()},
    }
    (folder / "run.toml").write_text(tomlkit.dumps(config), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataOptions, Dataset]:
    """Two methods with three seeds, one run that is not finished, and one that is there twice."""
    folder = tmp_path_factory.mktemp("report")
    data = make_data(folder / "data")
    dataset = load_dataset(data, SaliencyOptions())
    for seed in SEEDS:
        make_run(folder / f"runs/sage/{seed}", data, dataset, method="sage", seed=seed, skill=2.5)
        make_run(folder / f"runs/plain/{seed}", data, dataset, method="cross-entropy", seed=seed, skill=0.8)
    shutil.copytree(folder / "runs/sage/2", folder / "runs/again")
    shutil.copytree(folder / "runs/sage/2", folder / "runs/broken off")
    (folder / "runs/broken off/result.json").unlink()
    return folder, data, dataset


@pytest.fixture(scope="module")
def page(made: tuple[Path, DataOptions, Dataset]) -> Path:
    return write_report([made[0] / "runs"], made[0] / "out" / "report.html")


class Page(HTMLParser):
    """Collects what a browser would see: text, tags, and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def auroc(folder: Path, method: str, seed: int, subset: str) -> float:
    result = json.loads((folder / f"runs/{method}/{seed}/result.json").read_text(encoding="utf-8"))
    return next(
        s["metrics"]["auroc"]["value"]
        for s in result["evaluation"]["subsets"]
        if s["split"] == "test" and s["name"] == subset
    )


def test_table_agrees_with_numpy_and_scipy(made: tuple[Path, DataOptions, Dataset], page: Path) -> None:
    folder = made[0]
    table = tables.comparison(groups(find_runs([folder / "runs"]).runs))
    names = ["unseen", "seen", "all", *(f"type: {name}" for name in sorted([KNOWN, NEW, ODD, LONG]))]
    assert [column.title for column in table.columns] == [
        "unseen types", "seen types", "all", *(name.removeprefix("type: ") for name in names[3:])
    ]  # fmt: skip
    assert [row.label for row in table.rows] == ["cross-entropy", "sage"]
    shown = Page(page.read_text(encoding="utf-8")).text
    markdown = table.markdown()
    for i, name in enumerate(names):
        plain, sage = ([auroc(folder, method, seed, name) for seed in SEEDS] for method in ("plain", "sage"))
        for values, row in zip((plain, sage), table.rows, strict=True):
            cell = row.cells[i]
            assert cell.text == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
            assert cell.values == tuple(f"{value:.3f}" for value in values)
            assert cell.text in shown
            assert cell.text in markdown
        low, high = ttest_rel(sage, plain).confidence_interval(0.95)
        paired = table.rows[1].cells[i].paired
        assert paired is not None
        assert (paired.low, paired.high) == pytest.approx((low, high))
        assert table.rows[1].cells[i].bold == (low > 0 or high < 0)
        assert not table.rows[0].cells[i].bold
    assert {cell.bold for cell in table.rows[1].cells} == {True, False}


@pytest.mark.parametrize(
    ("leads", "told"),
    [
        ((2.9, 3.0, 3.1), "higher by more than the choice of seeds and test images explains"),
        ((-2.9, -3.0, -3.1), "lower by more than the choice of seeds and test images explains"),
        ((1.5, -1.5, 0.0), "contains zero, so these runs do not tell the two apart"),
    ],
)
def test_sentence_is_honest(
    made: tuple[Path, DataOptions, Dataset], tmp_path: Path, leads: tuple[float, ...], told: str
) -> None:
    _, data, dataset = made
    for seed, lead in enumerate(leads):
        make_run(tmp_path / f"s{seed}", data, dataset, method="sage", seed=seed, skill=2 + lead / 2)
        make_run(tmp_path / f"c{seed}", data, dataset, method="cross-entropy", seed=seed, skill=2 - lead / 2)
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert told in text
    assert "cannot go below p = 0.25" in text


def test_page_is_inert(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    seen = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "b-"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    loads = [value for name, value in seen.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(value.startswith(("data:image/", "#")) for value in loads)
    assert sum(value.startswith("data:image/jpeg") for value in loads) > 20
    assert not re.search(r"url\(|@import", html)
    for name in (KNOWN, NEW, ODD, LONG, "<b>test"):
        assert name in seen.text
    assert "synthetic" in seen.text


def test_left_out_runs_are_told(page: Path, made: tuple[Path, DataOptions, Dataset]) -> None:
    text = Page(page.read_text(encoding="utf-8")).text
    assert f"{made[0] / 'runs/broken off'}, 4 epochs done" in text
    assert f"{made[0] / 'runs/sage/2'} repeats {made[0] / 'runs/again'}" in text


def test_no_run_is_finished(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    text = Page(write_report([made[0] / "runs/broken off"], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "Nothing finished yet" in text
    assert "broken off, 4 epochs done" in text


def test_rate_that_nobody_has_is_a_note(made: tuple[Path, DataOptions, Dataset]) -> None:
    """10 bona fide images cannot show a BPCER of 1 %, nor of 5 %."""
    table = tables.operating_points(groups(find_runs([made[0] / "runs"]).runs), "all")
    assert [column.title for column in table.columns] == [
        "EER",
        "APCER at val",
        "BPCER at val",
        "Detection rate at val",
    ]
    assert sum("not resolvable" in note for note in table.notes) == 4
    assert not any(cell.text.startswith("undefined") for row in table.rows for cell in row.cells)


def test_label_says_what_sets_groups_apart(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    _, data, dataset = made
    for lr in (0.005, 0.01):
        make_run(tmp_path / f"{lr}", data, dataset, method="sage", seed=0, skill=1.0, lr=lr)
    found = groups(find_runs([tmp_path]).runs)
    assert [group.label for group in found] == ["sage (lr=0.005)", "sage (lr=0.01)"]
    cell = tables.comparison(found, kinds=["unseen"]).rows[0].cells[0]
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]", cell.text), "a single seed shows its bootstrap interval"
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "from one seed, nobody can tell" in text


def test_groups_never_share_a_label(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(made[0] / "runs/sage/0", tmp_path / name)
        path = tmp_path / name / "result.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(result | {"identity": name, "group": name * 64}), encoding="utf-8")
    labels = [group.label for group in groups(find_runs([tmp_path]).runs)]
    assert labels == ["sage [aaaaaaaa]", "sage [bbbbbbbb]"]


def test_notes_of_a_method_stand_beside_its_group(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    """Once for all seeds, escaped, and nowhere for groups that have none."""
    shutil.copytree(made[0] / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("again", "broken off"))
    for seed in SEEDS:
        path = tmp_path / f"runs/sage/{seed}/result.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(result | {"notes": ["At test time <b>nothing</b> | was fed."]}), encoding="utf-8")
    html = write_report([tmp_path / "runs"], tmp_path / "r.html").read_text(encoding="utf-8")
    how = Page(html[html.index('id="how"') :]).text
    assert how.count("sage: At test time <b>nothing</b> | was fed.") == 1
    assert "cross-entropy: " not in how
    markdown = write_report([tmp_path / "runs"], tmp_path / "r.md").read_text(encoding="utf-8")
    assert markdown.count(r"sage: At test time \<b\>nothing\</b\> \| was fed.") == 1


def test_undefined_stays_undefined(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "runs/sage/0", tmp_path / "run")
    path = tmp_path / "run/result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for subset in result["evaluation"]["subsets"]:
        subset["metrics"]["auroc"] = {"value": None, "low": None, "high": None, "why": "no negatives"}
    path.write_text(json.dumps(result), encoding="utf-8")
    table = tables.comparison(groups(find_runs([tmp_path]).runs))
    assert {cell.text for cell in table.rows[0].cells} == {"undefined (no negatives)"}
    assert "undefined (no negatives)" in write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")


def test_report_without_the_data_says_so(made: tuple[Path, DataOptions, Dataset], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "runs/sage/0", tmp_path / "run")
    path = tmp_path / "run/run.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("manifest.csv", "gone.csv"), encoding="utf-8")
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "The images are not shown, because the data cannot be read" in text
    assert "gone.csv" in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("result.json", "{", "damaged"),
        ("result.json", '{"format": 2}', "format 2"),
        ("run.toml", "a = ", "damaged"),
        ("metrics.jsonl", "\x00\n", "damaged"),
        ("environment.json", "[]", "holds a list"),
        ("environment.json", None, "missing"),
        ("predictions.csv", "id\n", "changed since the run finished"),
    ],
)
def test_damage_is_named(
    made: tuple[Path, DataOptions, Dataset], tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    shutil.copytree(made[0] / "runs/sage/0", tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + f".*{told}"):
        write_report([tmp_path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run found"):
        find_runs([tmp_path])
    with pytest.raises(UsageError, match="no such folder"):
        find_runs([tmp_path / "typo"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [400, 1280])
def test_browser_opens_the_page(page: Path, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the window, every image decodes, and the console stays empty.

    The page stands unchanged in a frame and is measured from outside: a headless window is at least 500 pixels wide.
    """
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<!doctype html><meta charset="utf-8"><iframe width="{width}" height="900"
        srcdoc="{escape(page.read_text(encoding="utf-8"))}"></iframe>
        <script>addEventListener("load", () => {{
            const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement
            const broken = [...inner.images].filter(image => !image.naturalWidth).length
            const excess = root.scrollWidth - root.clientWidth
            document.title = JSON.stringify({{ excess, broken, height: root.scrollHeight }})
        }})</script>""",
        encoding="utf-8",
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"]
    command = [str(CHROMIUM), "--headless", *(f"--{flag}" for flag in [*flags, "disable-sync"]), profile]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>({.*?})</title>", done.stdout)
    assert title, done.stderr
    measured = json.loads(title[1])
    assert measured["height"] > 3000
    assert (measured["excess"], measured["broken"]) == (0, 0)
    assert "CONSOLE" not in done.stderr
