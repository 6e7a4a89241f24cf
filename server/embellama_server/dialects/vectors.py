"""Vectors in replies: as numbers or base64, of one dtype or several.

a body's encoding_format, output_dtype … ── Encoding.of ──► Encoding ── json_items ──► the inside of a JSON list
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pybase64
from numpy.typing import NDArray

from embellama.errors import InvalidOption
from embellama.jobs import Jobs
from embellama.outputs import Dtype, check_dtype, normalization_of_call, quantize
from embellama_server.reply import ReplyContext, dumps

# 64 rows of 1024 floats take orjson about 2 ms.
ROWS_A_PIECE = 64

# A vector as it is written: numbers, base64, or one of either for each dtype.
EncodedVector = list[float] | str | dict[str, list[float] | str]


class Encoding(NamedTuple):
    """How vectors are written into a reply.

    dtypes: Each name as the client wrote it, and what it means.
    as_base64: Whether a row is written as base64 of its little-endian bytes, as OpenAI does.
    several: Whether each vector is an object with a value for each name, even if there is one.
    """

    dtypes: dict[str, Dtype]
    as_base64: bool = False
    several: bool = False

    @classmethod
    def of(cls, names: str | list[str] | None, as_base64: bool = False, param: str = "output_dtype") -> "Encoding":
        """Read what a client asked for: one name, or several; None is float32."""
        if names is None:
            return cls({"float": "float32"}, as_base64)
        several = not isinstance(names, str)
        wanted = [names] if isinstance(names, str) else names
        if not wanted:
            raise InvalidOption(param, "is an empty list; leave it out, or name a dtype")
        if "base64" in wanted:  # Jina's word for floats in base64
            as_base64 = True
        dtypes: dict[str, Dtype] = {}
        for name in wanted:
            dtype = "float32" if name in ("float", "base64") else name
            if dtype not in get_args(Dtype):
                raise InvalidOption(param, f"is {name!r}; it must be one of float, {', '.join(get_args(Dtype))}")
            dtypes[name] = dtype  # type: ignore[assignment]
        return cls(dtypes, as_base64, several)

    @property
    def formats(self) -> tuple[str, ...]:
        """The dtypes, as the client named them; base64 in the place of floats that are written so, else beside them."""
        if not self.as_base64:
            return tuple(self.dtypes)
        return (*(name for name in self.dtypes if name not in ("float", "base64")), "base64")

    def rows(self, vectors: NDArray[Any], limit: float) -> list[Any]:
        """Write some rows, as orjson takes them; `limit` is int8's (`embellama.outputs.quantize`)."""
        if not self.several:
            [dtype] = self.dtypes.values()
            return self._rows(vectors, dtype, limit)
        columns = {name: self._rows(vectors, dtype, limit) for name, dtype in self.dtypes.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _rows(self, vectors: NDArray[Any], dtype: Dtype, limit: float) -> list[Any]:
        rows = little_endian(vectors if dtype == "float32" else quantize(vectors, dtype, limit))
        return [pybase64.b64encode_as_string(row) for row in rows] if self.as_base64 else list(rows)


# The only encoding of dialects that have no field for it.
FLOATS = Encoding.of(None)


def check_encoding(jobs: Jobs, encoding: Encoding, normalize: bool | None = None) -> None:
    """Refuse what vectors scaled as `normalize` says cannot be written as; raises `InvalidOption`."""
    config = jobs.config
    mode = normalization_of_call(normalize, config.normalization)
    for dtype in encoding.dtypes.values():
        check_dtype(dtype, mode, config.int8_limit)


def little_endian(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows as their bytes are sent, whatever this machine's order."""
    if sys.byteorder == "little":
        return np.ascontiguousarray(rows)
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))


def json_items(
    vectors: NDArray[Any],
    encoding: Encoding,
    context: ReplyContext,
    item: Callable[[int, Any], Any] | None = None,
) -> Iterator[bytes]:
    """Write vectors as the inside of a JSON list, in pieces.

    Args:
        vectors: ``(n, dim)``.
        item: Makes the list's item of a vector's index and its encoded value; by default it is the value.
    """
    for start in range(0, len(vectors), ROWS_A_PIECE):
        rows = encoding.rows(vectors[start : start + ROWS_A_PIECE], context.config.int8_limit)
        if item:
            rows = [item(start + i, row) for i, row in enumerate(rows)]
        yield (b"," if start else b"") + dumps(rows)[1:-1]
