"""`EmbeddingEngine`: embed from any thread and from asyncio, though each model is confined to threads of its own.

EmbeddingEngine ──► JobRunner: makes a Job of the texts, has its rows computed, makes the result of them
                       │
                    ModelRegistry: loads and unloads the models

Every method that embeds or ranks, but for `embed_stream` and `encode_each`, has an awaitable twin whose name begins
with `a`.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Unpack

from numpy.typing import NDArray

from embellama.backend import Progress
from embellama.config import EngineConfig
from embellama.errors import ConfigError
from embellama.info import ModelInfo
from embellama.options import (
    ChunkKeywords,
    ChunkOptions,
    EmbedKeywords,
    EmbedOptions,
    TokenKeywords,
    TokenOptions,
    Truncate,
)
from embellama.pool import check_may_wait
from embellama.registry import ModelRegistry
from embellama.results import Chunks, Embeddings, Outcomes, Ranking
from embellama.runner import JobRunner, MakeJob, read_once
from embellama.text.tokenizer import Tokenized

Vector = NDArray[Any]


class EmbeddingEngine:
    """Loaded models, ready to embed from any thread and from asyncio.

    Use it as a context manager, or call `close()`: each loaded model keeps threads of its own.

    `model` is always a model's name, or None for the default model. Any method that takes it may raise, besides the
    errors it lists:
        ModelNotFound: No model of that name is known.
        InputError: A text is empty, too long or not valid (`index` says which), or an option is wrong.
        EmbeddingFailed: The model gave no usable vector for a text.
        Unavailable: The engine is closed, or this process is a fork of the one that loaded the model.
    """

    def __init__(self, config: EngineConfig | None = None, *, max_model_bytes: int | None = None):
        """Load the model of `config`, if given; more with `load_model`. Raises as `load_model` does.

        Args:
            config: The first model.
            max_model_bytes: Most bytes of weights to hold. To load a model, those used longest ago are unloaded; one
                that is asked for again is loaded again. None for no limit.
        """
        self._models = ModelRegistry(max_model_bytes)
        self._runner = JobRunner(self._models)
        if config is not None:
            self.load_model(config)

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were loaded; also of those that were unloaded to make room."""
        return self._models.names

    @property
    def default_model(self) -> str | None:
        """The model that None stands for: the one last set here, or the first that was loaded."""
        return self._models.default

    @default_model.setter
    def default_model(self, name: str) -> None:
        self._models.default = name

    def load_model(self, config: EngineConfig) -> None:
        """Load one more model and start its threads.

        Raises:
            ConfigError: A setting is wrong, the name is taken, or the model alone is larger than `max_model_bytes`.
            ModelLoadError: The file cannot be loaded, or is no embedding model.
        """
        if not isinstance(config, EngineConfig):
            raise ConfigError(f"config is {config!r}, not an EngineConfig: EngineConfig(model_path=…) makes one")
        check_may_wait()
        self._models.load(config)

    def unload_model(self, model: str) -> None:
        """Finish a model's open requests, then free and forget it.

        Raises:
            ModelNotFound: No model of that name is known.
        """
        check_may_wait()
        self._models.unload(model)

    def reload_model(self, model: str) -> None:
        """Load a model's file again, which may have changed; the old model is used until the new one is loaded.

        Where `max_model_bytes` has no room for both, the old model is unloaded first.

        A new file must be put in place by renaming it. Weights are mapped, so writing into the file of a loaded model
        changes its vectors, and truncating the file can end the process.

        Raises:
            ModelNotFound: No model of that name is known.
            ConfigError: The new file alone is larger than `max_model_bytes`, or a prompt's version has another
                content than it had; the old model stays.
            ModelLoadError: The file cannot be loaded; the old model stays, unless it made room.
        """
        check_may_wait()
        self._models.reload(model)

    def model_info(self, model: str | None = None) -> ModelInfo:
        """Describe a model.

        Raises:
            ModelNotFound: No model of that name is known.
        """
        return self._models.info(model)

    def encode(
        self,
        model: str | None,
        texts: Iterable[str],
        *,
        progress: Progress | None = None,
        **options: Unpack[EmbedKeywords],
    ) -> Embeddings:
        """Embed texts, and report how many tokens of each were computed and left out.

        Args:
            model: The model's name, or None for the default model.
            texts: Texts to embed.
            progress: Called with the number of texts (with `window_overlap`, of windows) done and of all; from one of
                the model's threads, so it must be quick and must not use the engine. Never from two at once.
            **options: See `EmbedOptions`.
        """
        return self._runner.run(model, _encoding(texts, options), progress)

    async def aencode(
        self,
        model: str | None,
        texts: Iterable[str],
        *,
        progress: Progress | None = None,
        **options: Unpack[EmbedKeywords],
    ) -> Embeddings:
        """As `encode`, for asyncio. Cancelling drops what is still queued."""
        return await self._runner.arun(model, _encoding(texts, options), progress)

    def encode_each(self, model: str | None, texts: Iterable[str], **options: Unpack[EmbedKeywords]) -> Outcomes:
        """Embed texts of which some may be at fault: each of those fails by itself, and no other because of it.

        Args:
            model: The model's name, or None for the default model.
            texts: Texts to embed.
            **options: See `EmbedOptions`.

        Raises:
            InputError: An option is wrong; never because of a text.
        """
        return self._runner.run_each(model, texts, EmbedOptions(**options))

    def embed(self, model: str | None, text: str, **options: Unpack[EmbedKeywords]) -> Vector:
        """Embed one text; ``(dim,) float32``, of unit length unless `normalization` or `options` say otherwise."""
        return self.encode(model, [text], **options).vectors[0]  # type: ignore[no-any-return]

    async def aembed(self, model: str | None, text: str, **options: Unpack[EmbedKeywords]) -> Vector:
        """As `embed`, for asyncio. Cancelling drops what is still queued."""
        return (await self.aencode(model, [text], **options)).vectors[0]  # type: ignore[no-any-return]

    def embed_batch(
        self,
        model: str | None,
        texts: Iterable[str],
        *,
        progress: Progress | None = None,
        **options: Unpack[EmbedKeywords],
    ) -> Vector:
        """Embed texts.

        Args:
            model: The model's name, or None for the default model.
            texts: Texts to embed.
            progress: Called with the number of texts (with `window_overlap`, of windows) done and of all; from one of
                the model's threads, so it must be quick and must not use the engine. Never from two at once.
            **options: See `EmbedOptions`.

        Returns:
            ``(n_texts, dim) float32``, one row per text in the order given; unit length unless `normalization` or
            `options` say otherwise.
        """
        return self.encode(model, texts, progress=progress, **options).vectors

    async def aembed_batch(
        self,
        model: str | None,
        texts: Iterable[str],
        *,
        progress: Progress | None = None,
        **options: Unpack[EmbedKeywords],
    ) -> Vector:
        """As `embed_batch`, for asyncio. Cancelling drops what is still queued."""
        return (await self.aencode(model, texts, progress=progress, **options)).vectors

    def embed_stream(
        self, model: str | None, texts: Iterable[str], *, n_ahead: int = 1024, **options: Unpack[EmbedKeywords]
    ) -> Iterator[Vector]:
        """Embed texts as they come, in memory that does not grow with their number.

        Args:
            model: The model's name, or None for the default model.
            texts: Texts to embed; read `n_ahead` texts ahead of what is yielded, and no further.
            n_ahead: Texts at work at once, at least 1. Fewer than a few batches leave threads idle.
            **options: See `EmbedOptions`.

        Yields:
            One vector per text, in the order given, ``(dim,)``. An error names the text by its position in the stream.
        """
        for embeddings in self._runner.stream(model, texts, n_ahead, EmbedOptions(**options)):
            yield from embeddings.vectors

    def embed_query(self, model: str | None, text: str | Iterable[str], **options: Unpack[EmbedKeywords]) -> Vector:
        """Embed one query, ``(dim,)``, or several, ``(n, dim)``, with the model's `query` prompt."""
        return self._prompted("query", model, text, options)

    async def aembed_query(
        self, model: str | None, text: str | Iterable[str], **options: Unpack[EmbedKeywords]
    ) -> Vector:
        """As `embed_query`, for asyncio."""
        return await self._aprompted("query", model, text, options)

    def embed_document(self, model: str | None, text: str | Iterable[str], **options: Unpack[EmbedKeywords]) -> Vector:
        """Embed one document, ``(dim,)``, or several, ``(n, dim)``, with the model's `document` prompt."""
        return self._prompted("document", model, text, options)

    async def aembed_document(
        self, model: str | None, text: str | Iterable[str], **options: Unpack[EmbedKeywords]
    ) -> Vector:
        """As `embed_document`, for asyncio."""
        return await self._aprompted("document", model, text, options)

    def embed_tokens(self, model: str | None, text: str, **options: Unpack[TokenKeywords]) -> Vector:
        """Embed every token of a text, special ones included, for late interaction (`embellama.similarity.max_sim`).

        Returns:
            ``(n_tokens, dim) float32``, each row scaled as `normalization` says unless `normalize` does.
        """
        return self._runner.run(model, lambda jobs: jobs.tokens([text], TokenOptions(**options)))[0]

    async def aembed_tokens(self, model: str | None, text: str, **options: Unpack[TokenKeywords]) -> Vector:
        """As `embed_tokens`, for asyncio."""
        return (await self._runner.arun(model, lambda jobs: jobs.tokens([text], TokenOptions(**options))))[0]

    def embed_chunks(self, model: str | None, text: str, **options: Unpack[ChunkKeywords]) -> Chunks:
        """Embed parts of a text that is read as a whole, so that each part knows its context (late chunking).

        Args:
            model: The model's name, or None for the default model.
            text: At most as long as the model reads.
            **options: See `ChunkOptions`.
        """
        return self._runner.run(model, lambda jobs: jobs.chunks(text, ChunkOptions(**options)))

    async def aembed_chunks(self, model: str | None, text: str, **options: Unpack[ChunkKeywords]) -> Chunks:
        """As `embed_chunks`, for asyncio."""
        return await self._runner.arun(model, lambda jobs: jobs.chunks(text, ChunkOptions(**options)))

    def rerank(
        self,
        model: str | None,
        query: str,
        documents: Iterable[str],
        top_n: int | None = None,
        *,
        truncate: Truncate = "none",
    ) -> Ranking:
        """Order documents by how well they answer a query: by a reranker's score, or by an embedding model's cosine.

        Args:
            model: The model's name, or None for the default model.
            query: The text that the documents are compared with.
            documents: Texts to order.
            top_n: Return so many at most; None for all.
            truncate: As in `EmbedOptions`; a reranker's documents are cut, never its query.
        """
        read = read_once(documents)
        return self._runner.run(model, lambda jobs: jobs.rerank(query, read(), top_n=top_n, truncate=truncate))

    async def arerank(
        self,
        model: str | None,
        query: str,
        documents: Iterable[str],
        top_n: int | None = None,
        *,
        truncate: Truncate = "none",
    ) -> Ranking:
        """As `rerank`, for asyncio."""
        read = read_once(documents)
        return await self._runner.arun(model, lambda jobs: jobs.rerank(query, read(), top_n=top_n, truncate=truncate))

    def tokenize(self, model: str | None, texts: Iterable[str], truncate: Truncate = "none") -> Tokenized:
        """Return texts' token ids, special ones included, as `encode` would compute them without a prompt."""
        check_may_wait()
        return self._models.get(model).jobs.tokenizer.encode(texts, truncate)

    def close(self) -> None:
        """Finish all open requests, then free every model. Calling it again does nothing."""
        check_may_wait()
        self._models.close()

    def __enter__(self) -> "EmbeddingEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompted(self, prompt: str, model: str | None, text: str | Iterable[str], options: EmbedKeywords) -> Vector:
        options = {"prompt": prompt, **options}
        if isinstance(text, str):
            return self.embed(model, text, **options)
        return self.embed_batch(model, text, **options)

    async def _aprompted(
        self, prompt: str, model: str | None, text: str | Iterable[str], options: EmbedKeywords
    ) -> Vector:
        options = {"prompt": prompt, **options}
        if isinstance(text, str):
            return await self.aembed(model, text, **options)
        return await self.aembed_batch(model, text, **options)


def _encoding(texts: Iterable[str], options: EmbedKeywords) -> MakeJob[Embeddings]:
    read = read_once(texts)
    return lambda jobs: jobs.encode(read(), EmbedOptions(**options))
