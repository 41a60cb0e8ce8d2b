"""A report of a study on several data sets: each by itself, and all beside one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lookhere.bench.material import Material
from lookhere.bench.report import write_report
from lookhere.bench.tables import overview
from lookhere.data.cache import load_dataset
from lookhere.data.manifest import SaliencyOptions, read_manifest
from test_report import SEEDS, make_data, make_run

SKILL = {"cross-entropy": 1.0, "sage": 2.0, "cyborg": 1.5}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two data sets of other images and types, of which cyborg has been trained on one."""
    folder = tmp_path_factory.mktemp("sets")
    for name, methods in (("eyes", SKILL), ("faces", [m for m in SKILL if m != "cyborg"])):
        data = make_data(folder / name)
        rows = data.manifest.read_text(encoding="utf-8")
        data.manifest.write_text(rows.replace("print $x_1$", f"{name} print"), encoding="utf-8")
        manifest = read_manifest(data, SaliencyOptions(), need_val=False)
        dataset = load_dataset(data, SaliencyOptions(), manifest)
        for method in methods:
            for seed in SEEDS:
                about = {"method": method, "seed": seed, "name": name, "skill": SKILL[method] + (name == "faces")}
                make_run(folder / "runs" / f"{method}-{name}-{seed}", data, dataset, **about)
    return folder / "runs"


def test_each_data_set_has_its_own_tables_and_all_stand_beside_one_another(study: Path, tmp_path: Path) -> None:
    whole = Material.gather([study])
    eyes, faces = whole.parts
    assert (eyes.name, faces.name) == ("eyes", "faces")
    assert [group.label for group in eyes.groups] == ["cross-entropy", "cyborg", "sage"]
    assert [group.label for group in faces.groups] == ["cross-entropy", "sage"]
    table = overview(whole.parts, "test")
    assert [column.title for column in table.columns] == ["eyes", "faces"]
    assert [row.label for row in table.rows] == ["cross-entropy", "cyborg", "sage"]
    for row in table.rows:
        for part, cell in zip((eyes, faces), row.cells, strict=True):
            found = [group for group in part.groups if group.label == row.label]
            if not found:
                assert (cell.text, cell.mean) == ("–", None)
                continue
            unseen = [s for run in found[0].runs for s in run.result["evaluation"]["subsets"] if s["name"] == "unseen"]
            assert cell.mean == pytest.approx(np.mean([s["metrics"]["auroc"]["value"] for s in unseen]))
            assert (cell.paired is not None) == (row.label != "cross-entropy")
    text = write_report([study], tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("**AUROC on test of each data set**")
    of_eyes, of_faces = text.split("**AUROC on eyes, test**")[1].split("**AUROC on faces, test**")
    assert "eyes print" in of_eyes
    assert "faces print" not in of_eyes
    assert "eyes print" not in of_faces
    assert "this run has no" not in text
    page = write_report([study], tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('<h2 class="part">') == 2
    assert "AUROC on test of each data set" in page
    tex = write_report([study], tmp_path / "r.tex").read_text(encoding="utf-8")
    labels = [line for line in tex.splitlines() if line.startswith(r"\label")]
    assert r"\label{tab:test-overview}" in labels
    assert r"\label{tab:faces-test-auroc}" in labels
    assert len(set(labels)) == len(labels)


def test_one_data_set_is_its_own_part(study: Path) -> None:
    runs = sorted(study.glob("*-faces-*"))
    whole = Material.gather(runs)
    assert whole.parts == [whole]
    assert whole.place("test") == "test"


def test_more_groups_than_figures_can_show_are_left_to_the_tables(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookhere.bench.material.DRAWN", 3)
    assert len(Material.gather([study]).drawn) == 5  # on two data sets, each of which has few enough
    monkeypatch.setattr("lookhere.bench.material.DRAWN", 2)
    text = write_report([study], tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("eyes: 3 groups are more than the ") == 4
    assert "faces: 2 groups" not in text
    assert 'alt="ROC curves on eyes, test"' not in text
    assert 'alt="ROC curves on faces, test"' in text
    assert 'alt="Terms of the loss on faces, train"' in text
    assert "Terms of the loss on eyes" not in text
    assert all(group.label in text for group in Material.gather([study]).groups)
