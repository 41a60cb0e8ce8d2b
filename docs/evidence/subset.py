"""Draw a smaller manifest: so many rows of each split and type, by seed, as the plans in this folder use them.

    python subset.py chest/manifest.csv chest/small.csv train/normal=200 train/bacterial=200 val/normal=100 …

Splits and types that are not named are left out. Rows are drawn from their alphabetical order, so that the result
depends on nothing but the manifest's content.
"""

import csv
import random
import sys
from collections import Counter
from pathlib import Path


def main(source: Path, target: Path, *settings: str) -> None:
    """Write the rows that ``SPLIT/TYPE=COUNT`` settings ask for."""
    wanted = {kind: int(count) for kind, _, count in (setting.partition("=") for setting in settings)}
    with source.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
    random.Random(0).shuffle(rows)
    taken: Counter[str] = Counter()
    with target.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        for row in rows:
            kind = f"{row['split']}/{row['type']}"
            if taken[kind] < wanted.get(kind, 0):
                taken[kind] += 1
                out.writerow(row)
    if short := [f"{kind}: {taken[kind]} of {count}" for kind, count in wanted.items() if taken[kind] < count]:
        sys.exit(f"{source}: too few rows: {', '.join(short)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
