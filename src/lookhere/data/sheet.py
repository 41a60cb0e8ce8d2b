"""The contact sheet of a check: images with their maps laid over them, since a person sees a wrong map at once."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lookhere.data.cache import Dataset
from lookhere.data.check import Summary
from lookhere.data.findings import Finding
from lookhere.data.manifest import Manifest

SIDE = 160
"""Side of a picture in pixels."""
TINT = np.array([255, 140, 0], np.float64)
STRENGTH = 0.55
"""Share of the tint where a map is white."""


def write_sheet(
    path: Path, dataset: Dataset, summary: Summary, *, seed: int = 0, drawn: int = 36, each: int = 12
) -> Path:
    """Write one HTML page, without links to anything outside it, and return its path.

    Args:
        path: file to write.
        dataset: as ``inspect`` returns it.
        summary: with it.
        seed: decides the images drawn at random.
        drawn: how many of them; types of all classes and splits take turns.
        each: most pictures of one finding.

    Raises:
        OSError: the file cannot be written.
    """
    template = Environment(
        loader=PackageLoader("lookhere.data", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("sheet.html.j2")
    sections = [_section(dataset, finding, each) for finding in summary.findings if finding.examples]
    html = template.render(
        title="/".join(summary.manifest.path.absolute().parts[-2:]),
        summary=summary,
        sections=sections,
        drawn=[_card(dataset, (row,), "") for row in _draw(summary.manifest, seed, drawn)],
        seed=seed,
        side=SIDE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _section(dataset: Dataset, finding: Finding, each: int) -> dict[str, Any]:
    cards = [_card(dataset, example.rows, example.reason) for example in finding.examples[:each]]
    return {"finding": finding, "cards": cards, "left": len(finding.examples) - len(cards)}


def _draw(manifest: Manifest, seed: int, count: int) -> list[int]:
    """Return rows at random, the splits, classes and types taking turns."""
    order = np.random.default_rng(seed).permutation(len(manifest)).tolist()
    turn: dict[tuple[str, int, str], int] = {}
    turns = []
    for row in order:
        kind = (str(manifest.split[row]), int(manifest.label[row]), manifest.type[row])
        turn[kind] = turn.get(kind, -1) + 1
        turns.append((turn[kind], row))
    chosen = [row for _, row in sorted(turns, key=lambda pair: pair[0])[:count]]
    return sorted(
        chosen, key=lambda row: (manifest.split[row] != "train", manifest.split[row], manifest.label[row], row)
    )


def _card(dataset: Dataset, rows: tuple[int, ...], reason: str) -> dict[str, Any]:
    manifest = dataset.manifest
    names = [*manifest.classes, "no label"]
    return {
        "reason": reason,
        "pictures": [
            {
                "uri": _picture(dataset, row),
                "id": manifest.image[row],
                # The negative class is often its own type.
                "about": " · ".join(
                    dict.fromkeys(
                        filter(None, [str(manifest.split[row]), names[manifest.label[row]], manifest.type[row]])
                    )
                ),
                "has_map": bool(dataset.map_index[row] >= 0),
                "line": int(manifest.line[row]),
            }
            for row in rows
        ],
    }


def _picture(dataset: Dataset, row: int) -> str:
    """Return an image as a data URI; where it has a map, salient pixels are tinted and the rest is as it is."""
    planes = np.broadcast_to(dataset.images[row], (3, *dataset.images.shape[2:]))
    pixels = np.moveaxis(planes, 0, -1).astype(np.float64)
    index = dataset.map_index[row]
    if index >= 0:
        share = dataset.maps[index][..., None] * (STRENGTH / 255)
        pixels = pixels * (1 - share) + TINT * share
    file = io.BytesIO()
    thumbnail = Image.fromarray(np.rint(pixels).astype(np.uint8))
    thumbnail.thumbnail((SIDE, SIDE))
    thumbnail.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
