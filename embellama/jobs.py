"""`Jobs`: turn texts into jobs of token ids, and the rows computed for a job into its result.

texts ── prompt ──► Tokenizer ──► windows, pairs ──► Job.tokens ──► EmbeddingModel.encode, in some pool
                                                                              │
vectors, scores ◄── cut, quantize ◄── chunks, windows merged ◄── Job.finish ◄┘ rows

No threads and no llama.cpp context: a `Backend` computes the rows.
"""

import contextlib
import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from embellama.batch import RowKind, Rows, Tokens
from embellama.config import EngineConfig
from embellama.errors import (
    EmbeddingFailed,
    EmptyInput,
    InputError,
    InvalidOption,
    ModelError,
    check_number,
)
from embellama.gguf.weights import Weights
from embellama.options import ChunkOptions, EmbedOptions, OutputOptions, Spans, TokenOptions, Truncate
from embellama.outputs import check_dimensions, check_dtype, cut, normalization_of_call, normalize, quantize
from embellama.results import Chunks, Embeddings, Ranked, Ranking
from embellama.text.pairs import PairFormat, naming_the_query
from embellama.text.prompt import Prompt
from embellama.text.prompts import Prompts
from embellama.text.tokenizer import Tokenized, Tokenizer, checked

Result = TypeVar("Result")


class Job(NamedTuple, Generic[Result]):
    """Texts for a model to compute, and how to make the result of their rows.

    tokens: Token ids of each text, ``(n,) int32``.
    finish: Makes the result of the rows: ``(n_texts, dim) float32``, or one row for each token.
    kind: The kind of row that each text is computed for.
    owners: For each of `tokens`, the index of the caller's text that it is of, or None for a query; by default its own.
    prompts: Those that were written around the texts, each once.
    """

    tokens: Sequence[Tokens]
    finish: Callable[[Rows], Result]
    kind: RowKind = RowKind.TEXT
    owners: Sequence[int | None] | None = None
    prompts: tuple[Prompt, ...] = ()

    def part(self, start: int, stop: int) -> "Job[Result]":
        """Return a job for some of the texts of one that gives a vector for each; it names texts as the whole does."""
        stop = min(stop, len(self.tokens))

        def finish(rows: Rows) -> Result:
            try:
                return self.finish(rows)
            except EmbeddingFailed as error:
                raise EmbeddingFailed(start + error.index, error.reason) from None

        return self._replace(tokens=self.tokens[start:stop], finish=finish, owners=range(start, stop))

    def named(self, error: EmbeddingFailed) -> ModelError:
        """Return an error of a back end, which names one of `tokens`, as one that names the caller's text."""
        owner = error.index if self.owners is None else self.owners[error.index]
        if owner is None:
            return ModelError(f"the model failed on the query: {error.reason}")
        return EmbeddingFailed(owner, error.reason)


class Jobs:
    """Makes jobs for one model.

    Attributes:
        config: The model's settings.
        tokenizer: The model's.
        prompts: The model's.
        reranker: Whether the model scores pairs instead of giving vectors.
    """

    def __init__(self, config: EngineConfig, weights: Weights):
        """Prepare for a model; a `vocab_only` load of its weights is enough.

        Raises:
            ConfigError: `prompts_file` cannot be read or is wrong, or `n_ctx` has no room for a token.
        """
        self.config = config
        self._weights = weights
        self.tokenizer = Tokenizer(weights, config.n_ctx)
        self.prompts = Prompts.of(config, weights.header)
        self.reranker = weights.pooling == "rank"
        self._pairs = PairFormat(weights, self.tokenizer)

    def prompts_now(self) -> Prompts:
        """Read the model's prompts again; raises `ConfigError` as `Jobs` does."""
        return Prompts.of(self.config, self._weights.header)

    def with_prompts(self, prompts: Prompts) -> "Jobs":
        """Return what makes jobs for the same model with other prompts; this one keeps those that it has."""
        jobs = copy.copy(self)
        jobs.prompts = prompts
        return jobs

    def encode(self, texts: Iterable[str], options: EmbedOptions = EmbedOptions()) -> Job[Embeddings]:
        """Make a job of texts, with one vector for each."""
        self._check_gives_vectors("text")
        writer = _VectorWriter(options, self.config, self._weights.dim)
        texts, prompts = self._prompted(texts, options)
        if options.window_overlap is not None:
            job = self._windows(texts, options.truncate, options.window_overlap, writer)
            return job._replace(prompts=prompts)
        tokens, n_cut = self.tokenizer.encode(texts, options.truncate)
        n_tokens = np.array([len(ids) for ids in tokens], np.int32)
        return Job(tokens, lambda rows: Embeddings(writer.texts(rows), n_tokens, n_cut), writer.kind, prompts=prompts)

    def encode_ids(self, ids: Sequence[Sequence[int]], options: OutputOptions = OutputOptions()) -> Job[Embeddings]:
        """Make a job of lists of token ids, with one vector for each; no special token is added to them."""
        self._check_gives_vectors("text")
        writer = _VectorWriter(options, self.config, self._weights.dim)
        tokens = self.tokenizer.check(ids)
        n_tokens = np.array([len(text) for text in tokens], np.int32)
        n_cut = np.zeros(len(tokens), np.int32)
        return Job(tokens, lambda rows: Embeddings(writer.texts(rows), n_tokens, n_cut), writer.kind)

    def tokens(self, texts: Iterable[str], options: TokenOptions = TokenOptions()) -> Job[list[NDArray[Any]]]:
        """Make a job of texts, with a vector for each of their tokens, special ones included."""
        self._check_gives_vectors("token")
        writer = _VectorWriter(options, self.config, self._weights.dim)
        texts, prompts = self._prompted(texts, options)
        tokens, _ = self.tokenizer.encode(texts, options.truncate)
        ends = list(itertools.accumulate(map(len, tokens)))

        def finish(rows: Rows) -> list[NDArray[Any]]:
            vectors = []
            for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                with _naming_part(index, "token"):
                    vectors.append(writer.unscaled(rows[start:end]))
            return vectors

        return Job(tokens, finish, RowKind.TOKEN, prompts=prompts)

    def chunks(self, text: str, options: ChunkOptions) -> Job[Chunks]:
        """Make a job of one text, read as a whole, with a vector for each part ("late chunking": Günther et al., 2024).

        A chunk's vector is the mean of its tokens' vectors, whatever the model's pooling.
        """
        self._check_gives_vectors("chunk")
        writer = _VectorWriter(options, self.config, self._weights.dim)
        chunk_size, token_spans, character_spans = options.chunk_size, options.token_spans, options.character_spans
        given = [chunk_size is not None, token_spans is not None, character_spans is not None]
        if sum(given) != 1:
            raise InputError("give exactly one of chunk_size, token_spans and character_spans")
        [tokens], _ = self.tokenizer.encode([text])
        n_first, n_last = len(self.tokenizer.first), len(self.tokenizer.last)
        n = len(tokens) - n_first - n_last
        if chunk_size is not None:
            check_number("chunk_size", chunk_size, "it must be at least 1", 1)
            spans = np.array([(i, min(i + chunk_size, n)) for i in range(0, max(n, 1), chunk_size)], np.int32)
            inner = spans
        elif token_spans is not None:
            inner = spans = _checked_spans(token_spans, n, "token")
        else:
            assert character_spans is not None
            spans = _checked_spans(character_spans, len(text), "character")
            inner = self.tokenizer.within(text, spans.tolist())
            for (start, end), (first, last) in zip(spans, inner, strict=True):
                if first >= last:
                    raise InputError(f"character span {start} to {end} has no token: there is nothing but space in it")
        outer = inner + n_first
        if chunk_size is not None:
            outer[0, 0], outer[-1, 1] = 0, len(tokens)

        def finish(rows: Rows) -> Chunks:
            means = np.array([rows[start:end].mean(axis=0, dtype=np.float64) for start, end in outer], np.float32)
            with _naming_part(0, "chunk"):
                return Chunks(writer.unscaled(means), spans)

        return Job([tokens], finish, RowKind.TOKEN)

    def rerank(
        self, query: str, documents: Iterable[str], *, top_n: int | None = None, truncate: Truncate = "none"
    ) -> Job[Ranking]:
        """Make a job of a query and documents, with the documents in the order of their relevance.

        Args:
            query: The text that the documents are compared with.
            documents: Texts to order.
            top_n: Return so many results at most.
            truncate: As in `TokenOptions`; a reranker's documents are cut, never its query.
        """
        with naming_the_query():
            checked([query])
        if top_n is not None:
            check_number("top_n", top_n, "it must be at least 1", 1)
        if isinstance(documents, str):
            raise InvalidOption("documents", "is one str, not a list of them")
        documents = list(documents)
        if self.reranker:
            return self._rerank_pairs(query, documents, top_n, truncate)
        return self._rerank_by_cosine(query, documents, top_n, truncate)

    def _rerank_pairs(self, query: str, documents: list[str], top_n: int | None, truncate: Truncate) -> Job[Ranking]:
        read = self._pairs.encode(query, documents, truncate)
        return Job(read.tokens, lambda rows: _ranking(rows[:, 0], top_n, "cross-encoder", read))

    def _rerank_by_cosine(
        self, query: str, documents: list[str], top_n: int | None, truncate: Truncate
    ) -> Job[Ranking]:
        self._check_gives_vectors("text")
        prompts = (self.prompts["query"], self.prompts["document"])
        queries = prompts[0].written_around([query])
        with naming_the_query():
            [asked], _ = self.tokenizer.encode(queries, truncate)
        read = self.tokenizer.encode(prompts[1].written_around(documents), truncate)
        read = Tokenized([*read.tokens, asked], read.n_cut)

        def finish(rows: Rows) -> Ranking:
            unit = normalize(rows)
            return _ranking(np.clip(unit[:-1] @ unit[-1], -1, 1), top_n, "cosine", read)

        return Job(read.tokens, finish, owners=[*range(len(documents)), None], prompts=prompts)

    def _windows(self, texts: list[str], truncate: Truncate, overlap: int, writer: "_VectorWriter") -> Job[Embeddings]:
        tokenizer = self.tokenizer
        room = tokenizer.limit - tokenizer.n_special
        if truncate != "none":
            raise InputError("truncate and window_overlap are two ways to read a long text; give one of them")
        check_number("window_overlap", overlap, f"this model's windows have {room} tokens", 0, room - 1)
        windows: list[Tokens] = []
        owners: list[int] = []
        for index, ids in enumerate(tokenizer.bare(texts)):
            if len(ids) + tokenizer.n_special == 0:
                raise EmptyInput(index)
            starts = range(0, max(len(ids) - overlap, 1), room - overlap)
            windows += [tokenizer.wrap(ids[start : start + room]) for start in starts]
            owners += [index] * len(starts)
        lengths = np.array([len(window) for window in windows], np.int32)
        n_tokens = np.bincount(owners, lengths, len(texts)).astype(np.int32)
        weights = (lengths - tokenizer.n_special).clip(1)

        def finish(rows: Rows) -> Embeddings:
            sums = np.zeros((len(texts), rows.shape[1]))
            np.add.at(sums, owners, writer.scaled(rows) * weights[:, None])
            means = (sums / np.bincount(owners, weights, len(texts))[:, None]).astype(np.float32)
            return Embeddings(writer.unscaled(means), n_tokens, np.zeros(len(texts), np.int32))

        return Job(windows, finish, writer.kind, owners)

    def _prompted(self, texts: Iterable[str], options: TokenOptions) -> tuple[list[str], tuple[Prompt, ...]]:
        """Write the prompt of a call around its texts; return it with them, if there is one."""
        if isinstance(texts, str):
            raise InputError("texts is one str, not a list of them; to embed one text, call embed")
        if options.prompt is None:
            if options.fields:
                raise InputError(f"fields are given ({', '.join(options.fields)}), but no prompt to put them in")
            return list(texts), ()
        prompt = self.prompts[options.prompt]
        return prompt.written_around(texts, options.fields), (prompt,)

    def _check_gives_vectors(self, what: str) -> None:
        name = self.config.model_name
        if self.reranker:
            raise InputError(f"model {name!r} is a reranker, which scores pairs of texts: call rerank")
        if what == "text" and self._weights.pooling == "none":
            raise InputError(f"model {name!r} has pooling none, so only tokens have vectors: call embed_tokens")


class _VectorWriter:
    """Scales, cuts and quantizes vectors as the options of one call say.

    Attributes:
        kind: The kind of row to compute for texts of which each gets one vector.
    """

    def __init__(self, options: OutputOptions, config: EngineConfig, dim: int):
        """Prepare for rows of `dim` numbers; raises `InputError` for options that cannot be."""
        self._dimensions, self._dtype, self._limit = options.dimensions, options.dtype, config.int8_limit
        self._mode = normalization_of_call(options.normalize, config.normalization)
        check_dimensions(options.dimensions, dim)
        check_dtype(options.dtype, self._mode, config.int8_limit)
        scales, model_scales = self._mode != "none", config.normalization != "none"
        self.kind = RowKind.POOLED if model_scales and not scales else RowKind.TEXT
        self._rows_need_scaling = scales and not model_scales
        self._is_whole = options.dtype == "float32" and options.dimensions in (None, dim)

    def scaled(self, rows: Rows) -> Rows:
        """Scale rows of `kind`, where the model has not."""
        return normalize(rows, self._mode) if self._rows_need_scaling else rows

    def texts(self, rows: Rows) -> NDArray[Any]:
        """Write rows of `kind`."""
        return self._written(self.scaled(rows))

    def unscaled(self, rows: Rows) -> NDArray[Any]:
        """Write rows that nobody has scaled yet; raises `EmbeddingFailed` for one that is no vector."""
        return self._written(normalize(rows, self._mode))

    def _written(self, rows: Rows) -> NDArray[Any]:
        if self._is_whole:
            return rows
        return quantize(cut(rows, self._dimensions, self._mode), self._dtype, self._limit)


@contextlib.contextmanager
def _naming_part(index: int, what: str) -> Iterator[None]:
    """Let an error about a row name the text at `index`, and the row's token or chunk."""
    try:
        yield
    except EmbeddingFailed as error:
        raise EmbeddingFailed(index, f"{what} {error.index}: {error.reason}") from None


def _checked_spans(spans: Spans, n: int, unit: str) -> NDArray[np.int32]:
    try:
        # An array of floats would be rounded without a word.
        pairs = [(operator.index(start), operator.index(end)) for start, end in spans]
    except (TypeError, ValueError):
        raise InputError(f"{unit}_spans must be pairs: the first {unit} and the one after the last") from None
    if not pairs:
        raise InputError(f"there are no {unit} spans")
    for start, end in pairs:
        if not 0 <= start < end <= n:
            raise InputError(f"{unit} span {start} to {end} is not within the text's {n} {unit}s, or is empty")
    return np.array(pairs, np.int32)


def _ranking(
    scores: NDArray[np.float32], top_n: int | None, method: Literal["cross-encoder", "cosine"], read: Tokenized
) -> Ranking:
    order = np.argsort(-scores, kind="stable")[:top_n]
    results = [Ranked(int(i), float(scores[i])) for i in order]
    return Ranking(results, method, sum(map(len, read.tokens)), read.n_cut)
