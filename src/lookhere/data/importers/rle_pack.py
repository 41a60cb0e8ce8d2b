"""The code of Label Studio's brush strokes: rle-pack of thi.ng/umbrella.

A stream of bits. First 32 for the number of values, 5 for the bits of a value less 1, and four times 4 for the bits of
a length less 1. Then blocks: 1 bit (are all values of this block equal?), 2 that choose one of the four, so many for
the length of the block less 1, and the value, or all values one by one.
"""

from __future__ import annotations

import numpy as np

from lookhere.data.importers.parse import integers
from lookhere.errors import DataError

HEADER = 32 + 5 + 4 * 4
LENGTHS = (3, 4, 8, 16)
"""Bits of a length, as Label Studio writes them."""


def unpack(packed: object, expected: int) -> np.ndarray:
    """Return the values of a packed stream.

    Args:
        packed: whole numbers from 0 to 255.
        expected: number of values that the stream must have; nothing is allocated before it is checked.

    Returns:
        n uint8.

    Raises:
        DataError: the stream is damaged, or has another number of values, or values that are not of 8 bits.
    """
    bits = np.unpackbits(integers(packed, "the rle", 255).astype(np.uint8))
    text = (bits + ord("0")).tobytes()
    if len(text) < HEADER:
        raise DataError("the rle is damaged; it ends too early")
    total, word = int(text[:32], 2), int(text[32:37], 2) + 1
    if total != expected or word != 8:
        raise DataError(f"the rle has {total} values of {word} bits; expected {expected} (width x height x 4) of 8")
    length_bits = {f"{i:02b}".encode(): int(text[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)}
    values = bytearray(total)
    at, filled = HEADER, 0
    while filled < total:
        start = at + 3 + length_bits.get(text[at + 1 : at + 3], len(text))
        if start > len(text):
            raise DataError("the rle is damaged; it ends too early")
        count = int(text[at + 3 : start], 2) + 1
        equal = text[at : at + 1] == b"1"
        at = start + 8 * (1 if equal else count)
        if at > len(text) or filled + count > total:
            raise DataError(f"the rle is damaged at value {filled} of {total}")
        block = int(text[start:at], 2).to_bytes((at - start) // 8, "big")
        values[filled : filled + count] = block * count if equal else block
        filled += count
    return np.frombuffer(values, np.uint8)


def pack(values: np.ndarray) -> list[int]:
    """Return 8-bit values as a packed stream of blocks of equal values, with lengths of 3, 4, 8 or 16 bits."""
    flat = np.asarray(values, np.uint8).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] + 1))
    text = f"{flat.size:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTHS)
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        for at in range(start, end, 2 ** LENGTHS[-1]):
            less = min(end - at, 2 ** LENGTHS[-1]) - 1
            i = next(i for i, bits in enumerate(LENGTHS) if less < 2**bits)
            text += f"1{i:02b}{less:0{LENGTHS[i]}b}{flat[start]:08b}"
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
