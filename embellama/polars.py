"""Expressions for Polars: `import embellama.polars`, then ``pl.col("text").embellama.embed("models/minilm.gguf")``.

pl.col("text").embellama.embed(model, …) ──► Expr.map_batches, elementwise ──► Polars asks for each slice of a column
                                                                                  │
   slice ──► Arrow ──► ColumnEmbedder, ColumnTokenizer, measures ──► Arrow ──► Series

A result's type is known before anything runs, and no model is loaded to know it. Engines are shared by a process, made
when the first slice comes, and closed at its end. docs/frames.md shows all of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

try:
    import polars as pl
except ImportError as missing:
    raise ImportError(f"embellama.polars needs Polars: pip install 'embellama[polars]' ({missing})") from missing

from embellama.errors import EmbellamaError, InputError, InvalidOption
from embellama.frames import measures, remote
from embellama.frames.asked import AskedVectors
from embellama.frames.embedding import ColumnEmbedder, OnError, plain
from embellama.frames.lists import nulls
from embellama.frames.models import Model, model_of
from embellama.frames.numbers import vectors_of
from embellama.frames.tokens import TOKENS, ColumnTokenizer
from embellama.options import EmbedKeywords, Truncate
from embellama.vectors.classify import label_texts

__all__ = ["EmbellamaExpressions", "near_duplicates", "remote"]


@pl.api.register_expr_namespace("embellama")
class EmbellamaExpressions:
    """What expressions can do: those of texts have `embed` and `tokens`, those of vectors the rest.

    `model` is the path of a GGUF file, an `EngineConfig`, an `EmbeddingEngine` (its default model is taken), or
    ``remote("http://…", "minilm")``.
    """

    def __init__(self, expr: pl.Expr):
        """Wrap an expression."""
        self._expr = expr

    def embed(
        self,
        model: Model,
        *,
        on_error: OnError = "raise",
        as_struct: bool = False,
        template: str | None = None,
        **options: Unpack[EmbedKeywords],
    ) -> pl.Expr:
        """Embed texts: String, Categorical or Enum; List or Array of them, to lists of vectors; with `template` Struct.

        Args:
            model: See the class.
            on_error: What a text without a vector is: an error that names column, row and reason, or ``null``.
            as_struct: Whether a row becomes a Struct of `embedding`, `n_tokens`, `n_cut` and `error`.
            template: Makes a text of the fields of a Struct: ``{title}: {text}``; null where one of them is.
            **options: See `EmbedOptions`: `dtype`, `dimensions`, `prompt`, `truncate`, …

        Returns:
            Array(Float32, dim), or of the numbers that `dtype` says; null where the text is.

        Raises:
            InvalidOption, InputError: An option is wrong, or the model gives no vectors.
            ModelLoadError, Unavailable: The file, or a server, does not tell how long its vectors are.
        """
        if options.get("dtype") == "float16" and not hasattr(pl, "Float16"):
            raise InvalidOption("dtype", f"is 'float16', which Polars {pl.__version__} does not have")
        embedder = ColumnEmbedder(model_of(model), on_error=on_error, as_struct=as_struct, template=template, **options)
        dtype: pl.DataType | pl.DataTypeExpr
        if template is not None or _may_be_several(self._expr):
            mapped, dtype = _Mapped(embedder.embed, False), _polars_type(embedder.type)
        else:  # vectors or lists of them, as the column has texts or lists; never run, only asked for its type
            dtype = pl.dtype_of(self._expr.map_batches(_Typed(embedder.type_of), is_elementwise=True))
            mapped = _Mapped(embedder.embed)
        return self._expr.map_batches(mapped, dtype, is_elementwise=True)

    def tokens(self, model: Model, *, truncate: Truncate = "none", on_error: OnError = "raise") -> pl.Expr:
        """Return each text's token ids, List(Int32), special ones included; ``.list.len()`` counts them.

        Args:
            model: See the class; servers have no tokens.
            truncate: As in `EmbedOptions`.
            on_error: As in `embed`.
        """
        tokenizer = ColumnTokenizer(model_of(model), truncate=truncate, on_error=on_error)
        return self._mapped(tokenizer.tokens, TOKENS)

    def cosine(self, other: "pl.Expr | str | Any") -> pl.Expr:
        """Return the cosine, Float32, of each vector and another: 0 where one is all zeros, null where one is null.

        Args:
            other: An expression or the name of a column, for the vector in the same row; or one vector for all.
        """
        return self._measured(measures.cosines, other)

    def dot(self, other: "pl.Expr | str | Any") -> pl.Expr:
        """Return the dot product, Float32, of each vector and another, which is as in `cosine`."""
        return self._measured(measures.dots, other)

    def top_k(self, queries: Any, k: int, *, model: Model | None = None, prompt: str | None = "query") -> pl.Expr:
        """Find the vectors of the column most like each query, by cosine, exactly.

        Args:
            queries: Texts, or vectors, ``(n_queries, dim)``.
            k: How many, at least 1.
            model: Embeds the queries, if they are texts: the model of the column.
            prompt: Prompt to write around a query that is a text; None for none.

        Returns:
            A row for each query, the best first: List(Struct) of `row`, counted from the column's first, and `score`.
        """
        asked = AskedVectors(queries, "queries", model=model, prompt=prompt)
        mapped = _Mapped(measures.matches, asked, k)
        return self._expr.map_batches(mapped, _polars_type(measures.MATCHES))

    def classify(
        self, labels: Sequence[str], model: Model, *, template: str = "{label}", prompt: str | None = None
    ) -> pl.Expr:
        """Give each vector the label that it is most like: zero-shot classification.

        Args:
            labels: At least two.
            model: The model of the column, which embeds the labels.
            template: The text that stands for a label.
            prompt: Prompt to write around it.

        Returns:
            Struct of `label`, `score`, the cosine of the two, and `margin`, by how much that is above the next.
        """
        asked = AskedVectors(label_texts(labels, template), "labels", model=model, prompt=prompt)
        return self._mapped(measures.labelled, measures.LABEL, list(labels), asked)

    def _measured(self, measure: Any, other: Any) -> pl.Expr:
        if isinstance(other, str | pl.Expr):
            both = [self._expr, pl.col(other) if isinstance(other, str) else other]
            return pl.map_batches(both, _MappedPairs(measure), pl.Float32, is_elementwise=True)
        rows = vectors_of(other, "other")
        if len(rows) != 1:
            raise InputError(f"other has {len(rows)} vectors; it must be one, or an expression")
        return self._expr.map_batches(_Compared(measure, rows[0]), pl.Float32, is_elementwise=True)

    def _mapped(self, function: Callable[..., Any], type: Any, *arguments: Any) -> pl.Expr:
        return self._expr.map_batches(_Mapped(function, *arguments), _polars_type(type), is_elementwise=True)


def near_duplicates(frame: pl.DataFrame | pl.LazyFrame, column: str, *, threshold: float) -> pl.DataFrame:
    """Find the rows that are much like an earlier one.

    Args:
        frame: A frame; a lazy one is collected.
        column: Its vectors. Null ones are like none.
        threshold: The least cosine of a duplicate, above 0 and at most 1.

    Returns:
        A row for each duplicate, in their order: `index`, counted as `with_row_index` does, `duplicate_of`, the index
        of the earlier row that it is most like and that is no duplicate itself, and `score`, their cosine.

    Raises:
        InputError: The column has no vectors, or `frame` is none.
        InvalidOption: `threshold` is out of its range.
    """
    if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InputError(f"frame is {type(frame).__name__}; it must be a DataFrame or a LazyFrame of Polars")
    rows = frame.lazy().select(column).collect().get_column(column)
    return pl.DataFrame(measures.duplicates(_arrow(rows), column, threshold))


class _Mapped:
    """Calls a function of an Arrow array, its name and more, with a Series. Can be pickled if the function can."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._function, self._arguments = function, arguments

    def __call__(self, series: pl.Series) -> pl.Series:
        try:
            return pl.Series(series.name, self._made(_arrow(series), series.name))
        except EmbellamaError as error:
            raise plain(error) from error

    def _made(self, array: Any, name: str) -> Any:
        return self._function(array, name, *self._arguments)


class _Compared(_Mapped):
    """Measures the vectors of a Series against one."""

    def _made(self, array: Any, name: str) -> Any:
        return measures.compared(self._function, array, name, *self._arguments)


class _MappedPairs:
    """Measures the vectors of two Series."""

    def __init__(self, measure: Callable[..., Any]):
        self._measure = measure

    def __call__(self, series: Sequence[pl.Series]) -> pl.Series:
        arrays, names = [_arrow(each) for each in series], [each.name for each in series]
        return pl.Series(names[0], measures.compared_pairs(self._measure, arrays, names))


class _Typed:
    """Returns nulls of the type that a function of Arrow types gives, so that Polars knows what a column becomes."""

    def __init__(self, type_of: Callable[[Any], Any]):
        self._type_of = type_of

    def __call__(self, series: pl.Series) -> pl.Series:
        return pl.Series(series.name, nulls(self._type_of(series.to_arrow().type), len(series)))


def _arrow(series: pl.Series) -> Any:
    """Return a column as an Arrow array.

    Vectors as lists, which share the numbers: of a slice with nulls, Polars 1.33 to 1.35 export a fixed-size list
    that lacks its last items, and Arrow ends the process over it.
    """
    return (series.arr.to_list() if isinstance(series.dtype, pl.Array) else series).to_arrow()


def _polars_type(type: Any) -> pl.DataType:
    return pl.Series(nulls(type, 0)).dtype


def _may_be_several(expr: pl.Expr) -> bool:
    """Tell whether an expression stands for columns whose types Polars cannot ask for one by one.

    Before 1.36 it cannot for `pl.element()` either, which it calls "".
    """
    return expr.meta.has_multiple_outputs() or "" in expr.meta.root_names()
