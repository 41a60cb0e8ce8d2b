"""Finds images that occur more than once: pixel for pixel, or nearly so (encoded again, resized, brightened).

Near-duplicates are found by a difference hash of 16 x 16 bits (N. Krawetz, "Kind of like that", 2013) and confirmed by
the correlation of thumbnails. Aligned X-rays or irises all look alike to a hash of the usual 8 x 8 bits.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookhere.data.cache import Dataset
from lookhere.data.findings import Example, Finding, counted, in_blocks
from lookhere.data.manifest import Manifest
from lookhere.data.table import UNUSED

SIDE = 16
RADIUS = 11
"""Bits of 256 in which near-duplicates may differ; JPEG at quality 50 or halving the size changes fewer in 97 %."""
CORRELATION = 0.997
"""Of their thumbnails; the same changes keep it above 0.9978, different pictures of one scene mostly do not."""
THUMBNAIL = 32


class Prints(NamedTuple):
    """What images are compared by."""

    digest: np.ndarray
    """``n`` 16-byte strings: equal for equal pixels."""
    hash: np.ndarray
    """``n 32`` uint8, packed difference hashes."""
    blank: np.ndarray
    """``n`` bool: one value throughout."""


def repeated_images(dataset: Dataset) -> list[Finding]:
    """Return repeats across splits (errors), with another label (errors), and near-duplicates (warnings)."""
    prints = fingerprints(dataset.images)
    return [*_blank(prints), *_repeats(dataset.manifest, prints), *_near_duplicates(dataset, prints)]


def fingerprints(images: np.ndarray) -> Prints:
    """Return the digests and hashes of ``n c h w`` uint8 images, on all cores."""

    def prints(block: slice) -> Prints:
        pixels = np.ascontiguousarray(images[block])
        digests = [hashlib.blake2b(one.data, digest_size=16).digest() for one in pixels]
        hashes = np.packbits([difference_hash(one) for one in pixels], axis=1)
        return Prints(np.array(digests, "V16"), hashes, pixels.min(axis=(1, 2, 3)) == pixels.max(axis=(1, 2, 3)))

    parts = zip(*in_blocks("comparing images", len(images), prints), strict=True)
    return Prints(*map(np.concatenate, parts))


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Return 256 bools: is a pixel of the 17 x 16 thumbnail brighter than its left neighbour?

    Args:
        image: ``c h w`` uint8, c = 1 or 3.
    """
    small = np.asarray(_grey(image).resize((SIDE + 1, SIDE), Image.Resampling.LANCZOS))
    return (small[:, 1:] > small[:, :-1]).ravel()


def pairs_within(hashes: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield blocks of all pairs of hashes that differ in at most ``radius`` bits, some of them more than once.

    Of ``radius + 1`` bands at least one is free of the differing bits, so only hashes that agree in a band are compared
    (multi-index hashing; Norouzi et al., CVPR 2012). Bands take every n-th bit: flat areas would fill whole ones.

    Args:
        hashes: ``n b`` uint8, packed bits.
        radius: in bits.

    Yields:
        first row, second row, distance: ``k`` each; a block has at most n pairs.
    """
    bits = np.unpackbits(hashes, axis=1)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    bands = radius + 1
    for band in range(bands):
        part = bits[:, band::bands]
        key = part @ (1 << np.arange(part.shape[1], dtype=np.int64))
        order = np.argsort(key, kind="stable")
        key = key[order]
        offset = 1
        at = np.flatnonzero(key[1:] == key[:-1])
        while len(at):
            one, other = order[at], order[at + offset]
            distance = np.bitwise_count(words[one] ^ words[other]).sum(axis=1)
            near = distance <= radius
            yield one[near], other[near], distance[near]
            offset += 1
            at = at[at + offset < len(key)]
            at = at[key[at] == key[at + offset]]


def _grey(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0]) if len(image) == 1 else Image.fromarray(np.moveaxis(image, 0, -1)).convert("L")


def _blank(prints: Prints) -> list[Finding]:
    rows = np.flatnonzero(prints.blank)
    examples = tuple(Example((int(row),), "one value throughout") for row in rows)
    text = f"{counted(len(rows), 'image')} with one value throughout: export them again, or leave them out"
    return [Finding("blank images", "warning", text, examples)] if examples else []


def _repeats(manifest: Manifest, prints: Prints) -> list[Finding]:
    leaks, contradictions = [], []
    within: defaultdict[str, list[Example]] = defaultdict(list)
    first: dict[bytes, list[int]] = {}
    for row, digest in enumerate(prints.digest.tolist()):
        # Compared with the first of each split and label, so that a repeat in train does not hide one in test.
        others = first.setdefault(digest, [])
        pairs = [other for other in others if manifest.image_file[other] != manifest.image_file[row]]
        leak = next((other for other in pairs if _leaks(manifest, row, other)), None)
        clash = next((other for other in pairs if manifest.label[other] != manifest.label[row]), None)
        if leak is not None:
            there = f"'{manifest.image[leak]}' ({manifest.split[leak]}, row {manifest.line[leak]})"
            here = f"'{manifest.image[row]}' ({manifest.split[row]})"
            leaks.append(Example((leak, row), f"{here} has the same pixels as {there}; expected one split"))
        elif clash is not None:
            names = [f"'{manifest.image[i]}' is '{_label(manifest, i)}'" for i in (row, clash)]
            there = f"{names[1]} in row {manifest.line[clash]}"
            contradictions.append(
                Example((clash, row), f"{names[0]} and {there}, of the same pixels; expected one label")
            )
        elif pairs:
            within[str(manifest.split[row])].append(Example((pairs[0], row), "the same pixels in two files"))
        if not any(
            (manifest.split[i], manifest.label[i]) == (manifest.split[row], manifest.label[row]) for i in others
        ):
            others.append(row)
    found = [
        Finding(
            "leakage",
            "error",
            f"{counted(len(leaks), 'image')} with the pixels of one in another split: keep each in one",
            tuple(leaks),
        ),
        Finding(
            "contradictory labels",
            "error",
            f"{counted(len(contradictions), 'image')} with the pixels of one with another label: keep the right one",
            tuple(contradictions),
        ),
        *(
            Finding(
                "repeats",
                "warning",
                f"{counted(len(e), 'image')} of {split} that repeat the pixels of another file: leave them out",
                tuple(e),
            )
            for split, e in within.items()
        ),
    ]
    return [finding for finding in found if finding.examples]


def _near_duplicates(dataset: Dataset, prints: Prints) -> list[Finding]:
    manifest = dataset.manifest
    rank = np.select([manifest.split == "train", manifest.split == "val", manifest.split == UNUSED], [0, 1, 3], 2)
    label = manifest.label

    def leaks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (rank[a] != rank[b]) & (rank[a] < 3) & (rank[b] < 3)

    def clashes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (rank[a] == rank[b]) & (label[a] != label[b])

    across, clashing = _twins(dataset, prints, leaks, rank), _twins(dataset, prints, clashes, rank)
    found = []
    if across:
        text = (
            f"{_by_splits(manifest, across)}: encoded again, resized or taken seconds later? Look at them; what shows "
            "one scene belongs in one split"
        )
        found.append(Finding("near-duplicates across splits", "warning", text, across))
    if clashing:
        text = (
            f"{counted(len(clashing), 'image')} much like one with another label: look at them, one label may be wrong"
        )
        found.append(Finding("near-duplicates with two labels", "warning", text, clashing))
    return found


def _by_splits(manifest: Manifest, pairs: tuple[Example, ...]) -> str:
    count: defaultdict[tuple[str, str], int] = defaultdict(int)
    for (other, row), _ in pairs:
        count[str(manifest.split[row]), str(manifest.split[other])] += 1
    return ", ".join(
        f"{counted(n, 'image')} of {here} much like one of {there}" for (here, there), n in sorted(count.items())
    )


Relevant = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _twins(dataset: Dataset, prints: Prints, relevant: Relevant, rank: np.ndarray) -> tuple[Example, ...]:
    """Return each row's closest near-duplicate among the relevant pairs (in train, if it has one there), best first."""
    count = len(dataset)
    far = RADIUS + 1
    closest = np.full(count, 3 * far)
    twin = np.full(count, -1)
    for one, other, distance in pairs_within(prints.hash, RADIUS):
        swap = rank[one] > rank[other]
        a, b = np.where(swap, other, one), np.where(swap, one, other)
        cost = rank[a] * far + distance
        keep = relevant(a, b) & (cost < closest[b]) & (prints.digest[a] != prints.digest[b])
        keep &= ~(prints.blank[a] | prints.blank[b])
        a, b, cost = a[keep], b[keep], cost[keep]
        order = np.argsort(-cost, kind="stable")  # a row that occurs twice is written last with its closest
        closest[b[order]], twin[b[order]] = cost[order], a[order]
    found = []
    for row in np.flatnonzero(twin >= 0).tolist():
        similarity = float(_thumbnail(dataset.images[row]) @ _thumbnail(dataset.images[twin[row]]))
        if similarity >= CORRELATION:
            found.append((similarity, Example((int(twin[row]), row), f"correlation {similarity:.4f}")))
    return tuple(example for _, example in sorted(found, key=lambda pair: -pair[0]))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    small = np.asarray(_grey(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float64).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def _leaks(manifest: Manifest, row: int, other: int) -> bool:
    splits = {str(manifest.split[row]), str(manifest.split[other])}
    return len(splits) > 1 and UNUSED not in splits and not all(split.startswith("test") for split in splits)


def _label(manifest: Manifest, row: int) -> str:
    return manifest.classes[manifest.label[row]]
