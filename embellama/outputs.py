"""Change vectors after the model: scale them, cut them to fewer dimensions, store them in fewer bytes.

the model's rows ── normalize ──► unit length ── cut ──► fewer dimensions ── quantize ──► int8, binary, …

Rows are ``(n, dim) float32``, one for each text or token. Each is treated by itself, so what a row becomes never
depends on the batch it came in. docs/outputs.md says what each choice costs in recall.
"""

import re
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Rows
from embellama.errors import ConfigError, EmbeddingFailed, InputError, InvalidOption, check_number

Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

# The range of int8 and uint8 that holds every unit vector, whatever the model.
UNIT_LIMIT = 1.0

# The largest absolute value under "max-abs": llama.cpp's, a little inside int16 (common_embd_normalize, common.cpp).
MAX_ABS = 32760.0


def check_normalization(mode: str) -> None:
    """Raise `ConfigError` unless `mode` is one that `normalize` knows."""
    if mode not in ("none", "max-abs") and not re.fullmatch(r"l[1-9]\d{0,2}", mode):
        raise ConfigError(f"normalization is {mode!r}; it must be l2, none, max-abs, or another p-norm from l1 to l999")


def normalization_of_call(normalize: bool | None, setting: str) -> str:
    """Return the mode of one call, as `normalize` takes it.

    Args:
        normalize: What the call asks for (`OutputOptions.normalize`).
        setting: The model's `normalization`.

    Raises:
        InvalidOption: `normalize` is none of True, False and None.
    """
    if normalize is None:
        return setting
    if not isinstance(normalize, bool | np.bool_):
        raise InvalidOption("normalize", f"is {normalize!r}; it must be True, False or None")
    if not normalize:
        return "none"
    return "l2" if setting == "none" else setting


def normalize(rows: Rows, mode: str = "l2") -> Rows:
    """Scale each row.

    Args:
        rows: ``(n, dim) float32``.
        mode: ``"l2"`` gives unit length; ``"l1"``, ``"l3"`` and so on a p-norm of 1; ``"max-abs"`` a largest absolute
            value of 32760; ``"none"`` leaves rows as they are. These are llama.cpp's ``--embd-normalize`` 2, p, 0, -1.

    Returns:
        ``(n, dim) float32``; with ``"none"`` the same array.

    Raises:
        ConfigError: There is no such mode.
        EmbeddingFailed: A row is not finite, or all zeros; whatever the mode.
    """
    check_normalization(mode)
    norms = _l2_norms(rows)
    if mode == "none":
        return rows
    if mode == "max-abs":
        norms = _largest(rows) / MAX_ABS
    elif mode != "l2":
        norms = _p_norms(rows, int(mode[1:]))
    # In float64: the norm of what float32 can still hold may be more than float32 can.
    return (rows / norms[:, None]).astype(np.float32)


def check_dimensions(dimensions: int | None, dim: int) -> None:
    """Raise `InputError` unless `dimensions` is None or from 1 to `dim`."""
    if dimensions is not None:
        check_number("dimensions", dimensions, f"this model gives 1 to {dim}", 1, dim)


def cut(rows: Rows, dimensions: int | None, mode: str = "l2") -> Rows:
    """Keep the first `dimensions` numbers of each row, and normalize it again.

    Args:
        rows: ``(n, dim) float32``, normalized with `mode`.
        dimensions: How many to keep; None keeps all.
        mode: As `normalize` takes it.

    Returns:
        ``(n, dimensions) float32``; the same array when nothing is cut.

    Raises:
        InputError: `dimensions` is not from 1 to ``dim``.
        ConfigError: There is no such mode.
        EmbeddingFailed: Nothing of a row is left to scale.
    """
    check_dimensions(dimensions, rows.shape[1])
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    try:
        return normalize(rows[:, :dimensions], mode)
    except EmbeddingFailed as error:
        raise EmbeddingFailed(error.index, f"cut to {dimensions} dimensions, {error.reason}") from None


def check_dtype(dtype: str, mode: str = "l2", limit: float = UNIT_LIMIT) -> None:
    """Raise `InputError` unless rows normalized with `mode` can be quantized to `dtype` with `limit`."""
    if dtype not in get_args(Dtype):
        raise InvalidOption("dtype", f"is {dtype!r}; it must be one of {', '.join(get_args(Dtype))}")
    if not 0 < limit < np.inf:
        raise InputError(f"the limit of int8 is {limit}; it must be a number above 0")
    if dtype in ("int8", "uint8") and mode in ("none", "max-abs") and limit == UNIT_LIMIT:
        raise InvalidOption(
            "dtype", f"is {dtype}, which holds -1 to 1; vectors with normalization {mode} need another limit"
        )


def quantize(rows: Rows, dtype: Dtype, limit: float = UNIT_LIMIT) -> NDArray[Any]:
    """Store rows in fewer bytes.

    =========  ======================  ==================================================================
    dtype      shape                   value
    =========  ======================  ==================================================================
    float32    ``(n, dim)``            x
    float16    ``(n, dim)``            x, rounded
    int8       ``(n, dim)``            round(127 x / limit), after clipping x to ±limit: -127 to 127
    uint8      ``(n, dim)``            the same plus 128: 1 to 255
    ubinary    ``(n, ceil(dim / 8))``  uint8: one bit for each x, 1 if x > 0; the first is the highest of a byte
    binary     ``(n, ceil(dim / 8))``  int8: ubinary minus 128
    =========  ======================  ==================================================================

    ubinary and binary are those of sentence-transformers' `quantize_embeddings` and of Voyage's API.

    Args:
        rows: ``(n, dim) float32``.
        dtype: One of the above.
        limit: The value that 127 stands for. 1 holds every unit vector; `calibrate` finds a model's own, which loses
            less. The same limit for every number, so that the dot product of two int8 rows follows that of the floats.

    Raises:
        InputError: There is no such dtype, or the limit is not above 0.
        EmbeddingFailed: A row is not finite, all zeros, or too large for float16.
    """
    check_dtype(dtype, limit=limit)
    _l2_norms(rows)
    match dtype:
        case "float32":
            return rows
        case "float16":
            return _float16(rows)
        case "int8":
            return _levels(rows, limit).astype(np.int8)
        case "uint8":
            return (_levels(rows, limit) + 128).astype(np.uint8)
        case "ubinary":
            return np.packbits(rows > 0, axis=1)
        case "binary":
            # Flipping the highest bit of a byte takes 128 from it.
            return (np.packbits(rows > 0, axis=1) ^ 128).view(np.int8)


def calibrate(rows: Rows) -> float:
    """Return the `limit` for `quantize` that suits a model: the largest absolute value in a sample of its vectors.

    Args:
        rows: ``(n, dim) float32`` of a few hundred texts like those to come. Keep the result with the model: vectors
            with different limits cannot be compared. After `cut`, values are larger; calibrate on cut rows then.

    Raises:
        InputError: There are no rows.
        EmbeddingFailed: A row is not finite, or all zeros.
    """
    if not len(rows):
        raise InputError("there are no rows to calibrate with")
    _l2_norms(rows)
    return float(_largest(rows).max())


def _l2_norms(rows: Rows) -> NDArray[np.float64]:
    """Return the length of each row; raise `EmbeddingFailed` for the first that is no usable vector."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        index = int(np.argmin(usable))
        raise EmbeddingFailed(index, "its vector is all zeros" if norms[index] == 0 else "its vector is not finite")
    return norms  # type: ignore[no-any-return]


def _p_norms(rows: Rows, p: int) -> NDArray[np.float64]:
    # Of the row over its largest value, or the powers would fall below what float64 can hold.
    largest = _largest(rows)
    powers = (np.abs(rows) / largest[:, None]) ** p
    return largest * powers.sum(axis=1) ** (1 / p)  # type: ignore[no-any-return]


def _largest(rows: Rows) -> NDArray[np.float64]:
    return np.abs(rows).max(axis=1).astype(np.float64)  # type: ignore[no-any-return]


def _levels(rows: Rows, limit: float) -> NDArray[np.float64]:
    # Symmetric about 0 and rounded: with sentence-transformers' floor over 256 levels, 0 becomes -1 and every value
    # moves down by half a level, which a dot product of the integers feels.
    return np.rint(rows.astype(np.float64).clip(-limit, limit) / limit * 127)


def _float16(rows: Rows) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    fits = np.isfinite(halves).all(axis=1)
    if not fits.all():
        raise EmbeddingFailed(int(np.argmin(fits)), "its vector is too large for float16")
    return halves
