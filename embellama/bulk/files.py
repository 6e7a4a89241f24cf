"""`Source`: the bytes of an input, decompressed and in UTF-8 or an encoding like it, line by line.

a path, or - ── Source.open ──► gzip, zstd undone ──► UTF-16, UTF-32 as UTF-8 ──► Lines: of bounded length

A plain file is read from any byte. What is compressed, or in UTF-16, is read from its beginning, and what comes before
is thrown away.
"""

import codecs
import functools
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from embellama.bulk.extra import arrow
from embellama.bulk.rows import RowTooLong
from embellama.errors import InputError

# A row of more bytes fails. Larger rows would be no texts that a model reads, but cost memory.
MAX_ROW_BYTES = 4 * 1024 * 1024

# What is read at once of a stream.
CHUNK_BYTES = 256 * 1024

# What is read at once of a file. More would be read again by a run that goes on.
BUFFER_BYTES = 64 * 1024

# Of the beginning and the end of a file, so many bytes are hashed, and at most 1/200 of it: changes that leave a file's
# size and time as they were are rare, and a run that goes on is to read little.
HASHED_BYTES = 16 * 1024

# Encodings in which a line end is not one byte.
WIDE = ("utf-16", "utf-32")


class Identity(msgspec.Struct, frozen=True):
    """What tells a file from another one, or from itself after a change.

    Attributes:
        path: Its absolute path.
        size: Its bytes.
        mtime_ns: When it was changed last.
        sha256: Of its first and last bytes.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: str) -> "Identity":
        """Look at a file."""
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            n = min(HASHED_BYTES, stat.st_size // 200)
            head = file.read(n)
            file.seek(stat.st_size - n)
            found = hashlib.sha256(head + file.read(n)).hexdigest()
        return cls(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, found)


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input, and how it is read. A run that goes on reads it in the same way.

    Attributes:
        path: Its path; "-" is standard input.
        format: ``csv``, ``jsonl``, ``lines``, ``parquet`` or ``arrow``; of documents ``text`` or ``pdf``.
        compression: ``gzip``, ``zstd`` or "".
        encoding: Of its text; of a document "" if it is found when it is read.
        delimiter: Between a CSV's columns.
        header: Whether a CSV's first row names its columns.
        columns: Names of the columns of its first row.
    """

    path: str
    format: str
    compression: str = ""
    encoding: str = ""
    delimiter: str = ","
    header: bool = False
    columns: tuple[str, ...] = ()

    @property
    def seekable(self) -> bool:
        """Whether it can be read from any byte."""
        return self.path != "-" and not self.compression and not self.encoding.startswith(WIDE)

    @property
    def is_document(self) -> bool:
        """Whether it is read as a whole or by pages, not by rows."""
        return self.format in ("text", "pdf")

    @property
    def line_encoding(self) -> str:
        """The encoding of its lines, as `Lines` gives them."""
        return "utf-8" if self.encoding.startswith(WIDE) else self.encoding

    def open(self, at: int = 0) -> IO[bytes]:
        """Open it at a byte of what comes out of it."""
        raw = standard_input() if self.path == "-" else open(self.path, "rb", BUFFER_BYTES)  # noqa: SIM115
        stream: IO[bytes] = decompressed(raw, self.compression, self.path)
        if self.encoding.startswith(WIDE):
            stream = io.BufferedReader(_Transcoded(stream, self.encoding), CHUNK_BYTES)
        if self.seekable:
            stream.seek(at)
            return stream
        while at > 0 and (thrown := stream.read(min(at, CHUNK_BYTES))):
            at -= len(thrown)
        return stream


class Lines:
    """The lines of a stream, none longer than is held at once.

    Attributes:
        at: The byte after the line that was given last.
    """

    def __init__(self, stream: IO[bytes], at: int):
        self._stream, self.at = stream, at

    def __iter__(self) -> Iterator[bytes | RowTooLong]:
        while line := self._stream.readline(MAX_ROW_BYTES + 1):
            is_first, self.at = self.at == 0, self.at + len(line)
            if is_first:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) <= MAX_ROW_BYTES or line.endswith(b"\n"):
                yield line
                continue
            n_bytes = len(line)
            while (rest := self._stream.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                n_bytes += len(rest)
            n_bytes += len(rest)
            self.at += n_bytes - len(line)
            yield RowTooLong(f"the row has {n_bytes} bytes; the limit is {MAX_ROW_BYTES}")


@functools.cache
def standard_input() -> io.BufferedReader:
    """Return standard input, of which the beginning can be looked at before it is read."""
    if sys.stdin is None:
        raise InputError("standard input is closed")
    return io.BufferedReader(sys.stdin.buffer.raw, CHUNK_BYTES)  # type: ignore[union-attr]


def decompressed(stream: IO[bytes], compression: str, path: str) -> Any:
    """Undo the compression of what is read of `path`; "" is none. Reading raises `InputError` where it is broken."""
    return io.BufferedReader(_Decompressed(stream, compression, path), CHUNK_BYTES) if compression else stream


class _Decompressed(io.RawIOBase):
    """What a compressed stream holds."""

    def __init__(self, stream: IO[bytes], compression: str, path: str):
        self._plain, self._named = arrow().CompressedInputStream(stream, compression), f"{path}: its {compression} data"

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._plain.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._plain.read(len(buffer))
        except OSError as error:
            raise InputError(f"{self._named} is broken: {error}") from None
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """A stream of text in another encoding, as UTF-8. Halves of surrogate pairs stay, and their rows fail later."""

    def __init__(self, stream: IO[bytes], encoding: str):
        self._text = io.TextIOWrapper(stream, encoding, errors="surrogatepass", newline="")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._text.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = self._text.read(max(1, len(buffer) // 4)).encode("utf-8", "surrogatepass")
        buffer[: len(data)] = data
        return len(data)
