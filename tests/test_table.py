from __future__ import annotations

from pathlib import Path

import pytest

from lookhere.data.table import read_table
from lookhere.errors import DataError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("image,label,split,note\na,b,train,x\n", ["row 1", "unknown column 'note'"]),
        ('image,label,split\na,"b,train\n', ["row 2: not valid CSV"]),
        (b"image,label,split\na.png,caf\xe9,train\n", ["row 2", "not UTF-8 (byte 0xe9)"]),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert all(part in str(caught.value) for part in [str(path), *parts]), str(caught.value)
