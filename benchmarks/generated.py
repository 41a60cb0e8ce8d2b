"""Generated images with labels and maps, for measurements whose content does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_set(
    folder: Path, rows: int, *, side: int, files: int | None = None, maps: bool = True, mode: str = "RGB"
) -> Path:
    """Write smooth noise of two classes below ``folder/train``, its maps, and a manifest; return the manifest.

    Args:
        folder: where to.
        rows: rows of the manifest, all in train.
        side: of the JPEG files, in pixels.
        files: how many different ones; by default one for each row, else they repeat.
        maps: give each image a map.
        mode: of the images, ``RGB`` or ``L``.
    """
    from PIL import Image

    draw = np.random.default_rng(0)
    files = min(files or rows, rows)
    coarse = max(2, side // 8)
    lines = []
    for i in range(files):
        label = "ab"[i % 2]
        image, drawn = folder / "train" / label / f"{i}.jpg", folder / "maps" / f"{i}.png"
        pixels = draw.integers(0, 256, (coarse, coarse, 4), np.uint8)
        image.parent.mkdir(parents=True, exist_ok=True)
        shown = Image.fromarray(pixels[..., :3]).resize((side, side), Image.Resampling.BICUBIC)
        shown.convert(mode).save(image, quality=90)
        if maps:
            drawn.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels[..., 3]).resize((side, side), Image.Resampling.BICUBIC).save(drawn)
        lines.append(f"train/{label}/{i}.jpg,{label},train,{f'maps/{i}.png' if maps else ''}")
    with (folder / "manifest.csv").open("w", encoding="utf-8") as file:
        file.write("image,label,split,saliency\n")
        file.writelines(f"{lines[row % files]}\n" for row in range(rows))
    return folder / "manifest.csv"
