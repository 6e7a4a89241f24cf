"""`ColumnEmbedder`: a column of texts in, a column of vectors out, both in Arrow's memory.

column ── Lists ──► items ── Texts ──► the different texts ── parts ── OpenTexts ──► FrameModel.find
                                                                                        │
column ◄── lists again ◄── FixedSizeList, or a struct with more ◄── rows of each text ◄─╯

A part has so many texts that the cache keeps all its rows, so a text of another part or slice is not computed again.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embellama.bulk.writers import BIT_NUMBERS, problem_of
from embellama.errors import (
    ConfigError,
    EmbeddingFailed,
    EmbellamaError,
    InputError,
    InvalidOption,
    ModelError,
    ServiceError,
)
from embellama.frames.lists import Lists, is_list, mask_of, one_array
from embellama.frames.models import UNKNOWN, Found, FrameModel
from embellama.frames.open_texts import open_texts
from embellama.frames.texts import Template, Texts
from embellama.options import EmbedKeywords, EmbedOptions
from embellama.outputs import check_dimensions, check_dtype

OnError = Literal["raise", "null"]

# Bytes of vectors that are computed together: half of what the cache keeps of one request. Fewer would leave workers
# without texts more often, at the end of each part.
PART_BYTES = 16 * 1024 * 1024


# Characters of a text that an error shows, so that it can be found.
EXCERPT = 40


class _Rows(NamedTuple):
    """What was found for the rows of a column, as in `Found`; `valid` tells which have a vector."""

    vectors: NDArray[Any]
    n_tokens: NDArray[np.int32]
    n_cut: NDArray[np.int32]
    valid: NDArray[np.bool_]
    errors: dict[int, EmbellamaError]


class _AtFault(Exception):
    """A text for which no vector was found, and why."""

    def __init__(self, text: str, error: EmbellamaError):
        super().__init__(text, error)
        self.text, self.error = text, error


class ColumnEmbedder:
    """Embeds columns with one model in one way.

    Attributes:
        type: The Arrow type of a row's result.
    """

    def __init__(
        self,
        model: FrameModel,
        *,
        on_error: OnError = "raise",
        as_struct: bool = False,
        template: str | None = None,
        **options: Unpack[EmbedKeywords],
    ):
        """Prepare; the model is asked for its vectors' length, and not loaded.

        Args:
            model: Computes.
            on_error: Whether a text without a vector is an error, or its vector null.
            as_struct: Whether a row's result is a struct: embedding, n_tokens, n_cut and error.
            template: Makes a text of each struct of a column of structs.
            **options: See `EmbedOptions`.

        Raises:
            InvalidOption: An option is wrong.
            ModelLoadError, InputError, Unavailable: As `FrameModel.dim` does.
        """
        check_on_error(on_error)
        if not isinstance(as_struct, bool):
            raise InvalidOption("as_struct", f"is {as_struct!r}; it must be True or False")
        try:
            self._options = EmbedOptions(**options)
        except TypeError as error:
            raise InputError(f"embed has no option of that name: {error}") from None
        self._model, self._each, self._as_struct = model, on_error == "null", as_struct
        self._template = None if template is None else Template(template)
        dim = model.dim(self._options)
        check_dimensions(self._options.dimensions, dim)
        check_dtype(self._options.dtype, limit=2.0)  # whether values fit into int8 the model's settings tell
        dtype = self._options.dtype
        dim = self._options.dimensions or dim
        self._width = (dim + 7) // 8 if dtype in BIT_NUMBERS else dim
        self._numbers: np.dtype[Any] = np.dtype(BIT_NUMBERS.get(dtype, dtype))
        vector = pa.list_(pa.from_numpy_dtype(self._numbers), self._width)
        parts = [("embedding", vector), ("n_tokens", pa.int32()), ("n_cut", pa.int32()), ("error", pa.large_string())]
        self.type = pa.struct(parts) if as_struct else vector

    @property
    def has_template(self) -> bool:
        """Whether columns are of structs."""
        return self._template is not None

    def type_of(self, column: Any) -> Any:
        """Return the Arrow type of the result for a column of an Arrow type."""
        return pa.large_list(self.type) if is_list(column) else self.type

    def embed(self, column: Any, name: str, may_be_lists: bool = True) -> Any:
        """Embed a column.

        Args:
            column: An Arrow array, in chunks or not.
            name: What it is called in errors.
            may_be_lists: Whether lists of texts are welcome.

        Returns:
            An Arrow array of as many rows; null where `column` is, and with ``on_error="null"`` where a text is at
            fault.

        Raises:
            InputError: The column has no texts; or one is at fault, unless that makes a null.
            ModelError, ServiceError: The same for what is the model's or the servers' fault.
        """
        array = one_array(column)
        if not may_be_lists and is_list(array.type):
            why = "a template is for structs" if self._template else "of several columns at once none may have lists"
            raise InputError(f"column {name!r} is {array.type}; {why}")
        lists = Lists.of(array)
        items = lists.items if lists else array
        texts = Texts.of(items, name, self._template)
        rows = self._rows(texts, name, lists)
        made = self._array(texts, rows)
        return lists.with_items(made) if lists else made

    def _rows(self, texts: Texts, name: str, lists: Lists | None) -> _Rows:
        n_rows = len(texts.codes)
        found = Found.empty(n_rows, self._width, self._numbers)
        rows = _Rows(*found[:3], texts.codes >= 0, found.errors)
        # The rows of each text, one behind the other.
        order = np.argsort(texts.codes, kind="stable")
        starts = np.searchsorted(texts.codes[order], np.arange(len(texts.values) + 1))
        step = max(1, PART_BYTES // max(1, 4 * self._width))
        for start in range(0, len(texts.values), step):
            values = texts.values[start : start + step]
            try:
                part = self._part(values)
            except _AtFault as fault:
                item = int(order[starts[start + values.index(fault.text)]])
                raise named(fault.error, name, item, n_rows, fault.text, lists) from fault.error
            places = order[starts[start] : starts[start + len(values)]]
            _scatter(part, places, texts.codes[places] - start, rows)
            rows.errors.update({start + i: error for i, error in part.errors.items()})
            if rows.errors and not self._each:
                first = min(rows.errors, key=lambda code: order[starts[code]])
                raise named(rows.errors[first], name, int(order[starts[first]]), n_rows, texts.values[first], lists)
        return rows

    def _part(self, values: list[str]) -> Found:
        table = open_texts(self._model.shared(self._options), msgspec.json.encode((self._options, self._each)))
        found = table.find(values, self._compute)
        if len(found.errors) < len(values) and found.vectors.shape[1] != self._width:
            raise ModelError(
                f"the model gave vectors of {found.vectors.shape[1]} numbers, not of {self._width}: it was changed "
                "since this expression was made"
            )
        return found

    def _compute(self, texts: Sequence[str]) -> Found:
        try:
            return self._model.find(texts, self._options, each=self._each)
        except (InputError, EmbeddingFailed) as error:
            if error.index is None:
                raise
            raise _AtFault(texts[error.index], error) from error

    def _array(self, texts: Texts, rows: _Rows) -> Any:
        values = pa.array(rows.vectors.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, self._width, mask=mask_of(rows.valid))
        if not self._as_struct:
            return vectors
        given = texts.codes >= 0
        counts = [pa.array(n, mask=~rows.valid | (n == UNKNOWN)) for n in (rows.n_tokens, rows.n_cut)]
        # Each message once, and taken for all its rows.
        codes = {code: i for i, code in enumerate(rows.errors)}
        messages = pa.array([problem_of(error).message for error in rows.errors.values()], pa.large_string())
        at = np.array([codes.get(code, -1) for code in texts.codes.tolist()], np.int64) if codes else texts.codes
        failed = given & ~rows.valid
        told = messages.take(pa.array(at, mask=~failed)) if codes else pa.nulls(len(at), pa.large_string())
        fields = [self.type.field(i) for i in range(self.type.num_fields)]
        return pa.StructArray.from_arrays([vectors, *counts, told], fields=fields, mask=mask_of(given))


def _scatter(part: Found, places: NDArray[np.int64], of: NDArray[np.int64], rows: _Rows) -> None:
    """Write what was found of texts to their rows, `places`; `of` tells the text of each."""
    if part.errors:
        failed = np.isin(of, list(part.errors))
        rows.valid[places[failed]] = False
        places, of = places[~failed], of[~failed]
    if len(places):
        rows.vectors[places] = part.vectors[of]
        rows.n_tokens[places], rows.n_cut[places] = part.n_tokens[of], part.n_cut[of]


def named(
    error: EmbellamaError, name: str, item: int, n_items: int, text: str, lists: Lists | None = None
) -> EmbellamaError:
    """Return the error of a text as one that names column and row, and shows how the text begins.

    Of a column that comes in slices nobody knows how many rows went before, so the row is told with the slice's length.
    """
    row, n_rows, inside = item, n_items, ""
    if lists:
        row, position = lists.place(item)
        n_rows, inside = len(lists.ends), f", item {position}"
    shown = f" ({text[:EXCERPT] + '…' * (len(text) > EXCERPT)!r})" if text else ""
    return plain(
        error, f"column {name!r}, row {row} of {n_rows} given together{inside}{shown}: {problem_of(error).message}"
    )


def plain(error: EmbellamaError, message: str = "") -> EmbellamaError:
    """Return an error as one that is made of its message alone: Polars makes errors anew, with a longer message."""
    kinds = (InputError, ModelError, ServiceError, ConfigError)
    return next((kind for kind in kinds if isinstance(error, kind)), EmbellamaError)(message or str(error))


def check_on_error(on_error: str) -> None:
    """Raise `InvalidOption` unless a text at fault is to be an error, or null."""
    if on_error not in ("raise", "null"):
        raise InvalidOption("on_error", f"is {on_error!r}; it must be 'raise' or 'null'")
