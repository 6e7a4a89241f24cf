"""`embed`: a column of any dataframe library that narwhals knows in, a column of the same library out.

Polars, pandas, PyArrow ── narwhals ──► Arrow ── ColumnEmbedder ──► Arrow ──► the same library
"""

from typing import Any, Unpack

from embellama.bulk.extra import extra
from embellama.errors import InputError
from embellama.frames.embedding import ColumnEmbedder, OnError
from embellama.frames.lists import one_array
from embellama.frames.models import Model, model_of
from embellama.options import EmbedKeywords


def embed(
    series: Any,
    model: Model,
    *,
    on_error: OnError = "raise",
    as_struct: bool = False,
    template: str | None = None,
    **options: Unpack[EmbedKeywords],
) -> Any:
    """Embed a column.

    Args:
        series: A Series of Polars or pandas, or an array of PyArrow, of texts, lists of texts, or with `template`
            structs.
        model: As in `embellama.polars`.
        on_error: ``raise``, or ``null`` for texts that have no vector.
        as_struct: Whether to return structs of embedding, n_tokens, n_cut and error.
        template: Makes a text of each struct: ``{title}: {text}``.
        **options: See `EmbedOptions`.

    Returns:
        The same kind of column, of vectors: Arrow's fixed-size lists, which pandas holds as `pandas.ArrowDtype`, with
        the name and index of `series`. Null where `series` is.

    Raises:
        InputError: `series` is no such column, or a text is at fault.
        ConfigError: A package is missing.
        ModelLoadError, ModelError, ServiceError: As the model has it.
    """
    pa = extra("pyarrow", "columns of dataframes", "polars")
    # narwhals knows only those arrays that are in chunks.
    wrapped = None if isinstance(series, pa.Array) else _wrapped(series)
    name = "" if wrapped is None or wrapped.name is None else str(wrapped.name)
    try:
        column = series if wrapped is None else wrapped.to_arrow()
    except pa.ArrowException as error:  # a column of objects of several kinds
        raise InputError(f"column {name!r} cannot be read as texts: {error}") from None
    embedder = ColumnEmbedder(model_of(model), on_error=on_error, as_struct=as_struct, template=template, **options)
    made = embedder.embed(one_array(column), name)
    return made if wrapped is None else _like(wrapped, series, name, made)


def _wrapped(series: Any) -> Any:
    """Return a column as narwhals knows it."""
    try:
        return extra("narwhals", "columns of dataframes", "polars").from_native(series, series_only=True)
    except TypeError:
        raise InputError(f"series is {type(series).__name__}, no column of Polars, pandas or PyArrow") from None


def _like(wrapped: Any, series: Any, name: str, made: Any) -> Any:
    """Return an Arrow array as a column of the library of `series`."""
    pa = extra("pyarrow", "columns of dataframes", "polars")
    if wrapped.implementation.is_polars():
        return extra("polars", "columns of Polars", "polars").Series(name, made)
    if wrapped.implementation.is_pandas_like():
        pd = wrapped.implementation.to_native_namespace()
        return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([made])), index=series.index, name=series.name)
    return pa.chunked_array([made])
