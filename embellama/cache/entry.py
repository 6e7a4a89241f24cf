"""The rows of one text as every layer keeps them: bytes with a checksum, their length and the time of their making.

rows ── sealed ──► crc32 | length | born | float32 numbers ── is_sound ──► numbers

A layer that may be damaged from outside (a file, another machine) is believed only where `is_sound`.
"""

import struct
import zlib

_BODY = struct.Struct("<Id")  # bytes of numbers; when they were made, in seconds since 1970
_CRC_BYTES = 4

#: Most bytes of numbers in an entry: the rows of 2,700 tokens of 384 dimensions. Larger ones would drive out too much.
MAX_ENTRY_BYTES = 4 * 1024 * 1024

#: Bytes before the numbers.
HEAD_BYTES = _CRC_BYTES + _BODY.size


def sealed(numbers: bytes, born: float) -> bytes:
    """Return an entry of a text's rows, as float32 numbers, that were made at `born`, in seconds since 1970."""
    body = _BODY.pack(len(numbers), born) + numbers
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def is_sound(entry: bytes, n_bytes: int, since: float) -> bool:
    """Tell whether an entry is whole, has so many bytes of numbers, and was not made before `since`."""
    if len(entry) != HEAD_BYTES + n_bytes or zlib.crc32(entry[_CRC_BYTES:]) != int.from_bytes(entry[:4], "little"):
        return False
    length, _ = _BODY.unpack_from(entry, _CRC_BYTES)
    return bool(length == n_bytes) and born(entry) >= since


def born(entry: bytes) -> float:
    """Return when an entry's rows were made, in seconds since 1970."""
    return float(_BODY.unpack_from(entry, _CRC_BYTES)[1])


def numbers(entry: bytes) -> memoryview:
    """Return an entry's numbers, which cannot be written to."""
    return memoryview(entry)[HEAD_BYTES:]
