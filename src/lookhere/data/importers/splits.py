"""Draws train, val and test for samples that have no split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

NAMES = ("train", "val", "test")


def draw_splits(
    names: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str],
    splits: Sequence[str],
    shares: tuple[float, float, float],
    seed: int,
) -> list[str]:
    """Return the splits, with each empty one drawn.

    A group (a subject, a patient) goes into one split as a whole, and into the one that some of it already has. Each
    class is shared out on its own; a class of few groups has two in train first, then one in val, then one in test.

    Args:
        names: unique; the order of the samples does not matter to the draw.
        labels: class of each sample.
        groups: "" = a group of its own.
        splits: "" = to be drawn.
        shares: of train, val and test; they add up to 1.
        seed: decides the draw.
    """
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        members[("group", groups[i]) if groups[i] else ("image", names[i])].append(i)
    drawn = list(splits)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for rows in members.values():
        given = next((splits[i] for i in rows if splits[i]), "")
        if given:
            for i in rows:
                drawn[i] = drawn[i] or given
        else:
            strata[Counter(labels[i] for i in rows).most_common(1)[0][0]].append(rows)
    random = np.random.default_rng(seed)
    for _, units in sorted(strata.items()):
        order = [units[i] for i in random.permutation(len(units))]
        missing = np.array(shares) * sum(map(len, units))
        first = [k for k in (0, 0, 1, 2) if shares[k] > 0]
        for n, rows in enumerate(order):
            k = first[n] if n < len(first) else int(missing.argmax())
            missing[k] -= len(rows)
            for i in rows:
                drawn[i] = NAMES[k]
    return drawn
