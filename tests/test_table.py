from __future__ import annotations

from pathlib import Path

import pytest

from lookhere.data.table import read_table
from lookhere.errors import DataError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["not found"]),
        ("", ["is empty", "image,label,split"]),
        ("\n\n", ["is empty"]),
        ("image,label,split\n", ["no rows below the header"]),
        ("image;label;split\na;b;train\n", ["row 1", "separated by ';'", "'image;label;split'", "expected commas"]),
        ("train\treal\ta.png\n", ["row 1", "separated by '\\t'", "expected commas"]),
        ("image,lable,split\na,b,train\n", ["no column 'label'", "'lable'; expected", "did you mean 'label'?"]),
        ("image,label,split,split\na,b,train,val\n", ["row 1", "column 'split' occurs 2 times"]),
        ("image,label,split,note\na,b,train,x\n", ["row 1", "unknown column 'note'"]),
        ('image,label,split\na,"b,train\n', ["row 2: not valid CSV"]),
        (b"image,label,split\na.png,caf\xe9,train\n", ["row 2", "not UTF-8 (byte 0xe9)"]),
        ("image,label,split\na.png,b,train\n".encode("utf-16"), ["UTF-16"]),
        ("image,label,split\na.png,b,train\n".encode("utf-16-le"), ["UTF-16"]),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: str | bytes | None, parts: list[str]) -> None:
    path = tmp_path / "manifest.csv"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert all(part in str(caught.value) for part in [str(path), *parts]), str(caught.value)
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)
