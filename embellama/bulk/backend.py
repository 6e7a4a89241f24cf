"""`BulkBackend`: texts in, a future of their outcomes out, one for each; `EngineBackend` computes them in this process.

a part's texts ── submit ──► one thread, part after part ── tokenize, faults left out ──► the model's threads, or
                                                                                             │ servers (`bulk.remote`)
outcomes ◄── vectors, or the error of each text at fault ◄── computed again without them ◄───╯

A vector's last digits depend on the texts that it is computed beside. So that a run which was ended and gone on with
gives the same bytes, one part at a time is with the model: its batches then follow from its texts alone.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from numpy.typing import NDArray

from embellama.backend import Backend
from embellama.batch import Rows
from embellama.bulk.documents.chunks import Chunker
from embellama.bulk.documents.late import WindowJob, grouped, joined, window_jobs
from embellama.bulk.job import BulkJob
from embellama.bulk.rows import LateChunk
from embellama.cache.key import weights_hash
from embellama.config import EngineConfig
from embellama.errors import EmbeddingFailed, EmbellamaError, InputError, check_number
from embellama.halves import by_halves
from embellama.info import ModelInfo
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.pool import Pool
from embellama.registry import LoadedModel
from embellama.results import Embeddings
from embellama.text.prompt import Prompt

Result = TypeVar("Result")
AnyEngine = TypeVar("AnyEngine", bound=EngineConfig)

# The settings of a model that its vectors depend on, down to their last digits.
SETTINGS = (
    "n_ctx",
    "num_workers",
    "n_threads",
    "n_gpu_layers",
    "max_batch_size",
    "max_batch_tokens",
    "compute",
    "pooling",
    "normalization",
    "int8_limit",
)


NO_CACHE: dict[str, Any] = {"cache_bytes": 0, "cache_file": "", "redis_url": ""}


class Embedded(NamedTuple):
    """The outcome of a text that was embedded.

    vector: ``(dim,)``.
    n_tokens: Tokens computed; None where a server counts only those of a whole request.
    n_cut: Tokens left out; None where a server does not say.
    mean_tokens: Where `n_tokens` is None, those of the request's texts, on average; 0 where they were not counted.
    """

    vector: NDArray[Any]
    n_tokens: int | None
    n_cut: int | None
    mean_tokens: float = 0.0


Outcome = Embedded | EmbellamaError

# What is embedded: a text, or a part of one that is computed with what is around it.
Text = str | LateChunk


class BulkBackend(Protocol):
    """Computes the texts of parts."""

    @property
    def dim(self) -> int:
        """Numbers of a vector, before `dtype`."""

    @property
    def n_parts(self) -> int:
        """Parts that it should have at once: what one of them waits for, others can use."""

    def facts(self) -> dict[str, object]:
        """Return, by name, what vectors depend on beside texts and options: weights, versions, kernels."""

    def chunker(self, job: BulkJob) -> Chunker | None:
        """Return what cuts documents into chunks of the model's tokens, as a job says; None if it wants none.

        Raises:
            InputError: The model does not read as many tokens.
        """

    def submit(self, texts: Sequence[Text]) -> "Future[list[Outcome]]":
        """Compute texts, no two of them equal. The future fails only if no other text could be computed either."""

    def close(self) -> None:
        """Drop what was submitted, and free everything."""


class Model(Protocol):
    """A model, wherever it is computed: `LoadedModel`, `RemoteModel`."""

    config: EngineConfig
    jobs: Jobs
    info: ModelInfo

    @property
    def backend(self) -> Backend[Future[Rows]]:
        """Computes the rows of its jobs."""

    def close(self) -> None:
        """Free it."""


class ModelBackend:
    """Computes parts with a model whose texts become tokens in this process.

    Attributes:
        n_parts: One part is with the model at a time.
    """

    n_parts = 1

    def __init__(self, model: Model, options: EmbedOptions):
        """Begin with a model, which is closed at the end, or at once if this raises `InputError`: an option is wrong.

        Args:
            model: The model.
            options: How texts are read and vectors written.
        """
        self._model, self._options = model, options
        self._running: Future[Any] | None = None
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "bulk")
        try:
            self._model.jobs.encode(["a"], options)  # options that are wrong are found before any work
        except BaseException:
            self.close()
            raise

    @property
    def dim(self) -> int:
        """Numbers of a vector, before `dtype`."""
        return self._options.dimensions or self._model.info.dim

    def facts(self) -> dict[str, object]:
        """Return what vectors depend on, as `BulkBackend.facts` says, as far as it is decided in this process."""
        config, prompt = self._model.config, _prompt(self._model.jobs, self._options)
        return {
            "name": config.model_name,
            "weights_sha256": weights_hash(config.model_path).hex(),
            "prompt": _written(prompt, self._options),
            "prompt_identity": prompt.identity if prompt else "",
            "versions": {name: importlib.metadata.version(name) for name in ("embellama", "llama-cpp-python", "numpy")},
        }

    def chunker(self, job: BulkJob) -> Chunker | None:
        """Return what cuts documents into chunks, as `BulkBackend.chunker` says."""
        return chunker_of(self._model.jobs, job)

    def submit(self, texts: Sequence[Text]) -> "Future[list[Outcome]]":
        """Compute texts, as `BulkBackend.submit` says, after those submitted before."""
        return self._thread.submit(self._outcomes, texts)

    def close(self) -> None:
        """Drop what was submitted, and free the model."""
        self._closing = True
        if self._running:
            self._running.cancel()
        self._thread.shutdown(cancel_futures=True)
        self._model.close()

    def _outcomes(self, texts: Sequence[Text]) -> list[Outcome]:
        plain = [text for text in texts if isinstance(text, str)]
        late = [text for text in texts if not isinstance(text, str)]
        found, found_late = iter(self._of_texts(plain)), iter(self._of_chunks(late))
        return [next(found if isinstance(text, str) else found_late) for text in texts]

    def _of_texts(self, texts: Sequence[str]) -> list[Outcome]:
        if not texts:
            return []
        try:
            return _embedded(self._encode(texts))
        except (InputError, EmbeddingFailed) as error:
            if error.index is None:
                raise
        read = by_halves(texts, self._tokenize)
        good = [i for i, outcome in enumerate(read) if outcome is None]
        computed = by_halves([texts[i] for i in good], lambda part: _embedded(self._encode(part)))
        outcomes = dict(zip(good, computed, strict=True))
        return [outcomes[i] if outcome is None else outcome for i, outcome in enumerate(read)]

    def _of_chunks(self, chunks: Sequence[LateChunk]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        windows: list[WindowJob] = []
        for made in window_jobs(self._model.jobs, chunks, self._options):
            if isinstance(made, WindowJob):
                windows.append(made)
            else:
                outcomes |= dict.fromkeys(*made)
        for group in grouped(windows):
            for window, outcome in zip(group, by_halves(group, lambda part: self._rows(joined(part))), strict=True):
                if isinstance(outcome, EmbellamaError):
                    outcomes |= dict.fromkeys(window.numbers, outcome)
                else:
                    found = map(Embedded, outcome.vectors, window.n_tokens, [0] * len(window.numbers))
                    outcomes |= zip(window.numbers, found, strict=True)
        return [outcomes[number] for number in range(len(chunks))]

    def _tokenize(self, texts: Sequence[str]) -> list[None]:
        self._model.jobs.encode(texts, self._options)
        return [None] * len(texts)

    def _encode(self, texts: Sequence[str]) -> Embeddings:
        return self._rows(self._model.jobs.encode(texts, self._options))

    def _rows(self, job: Job[Result]) -> Result:
        future = self._running = self._model.backend.submit(job.tokens, kind=job.kind)
        if self._closing:
            future.cancel()
        try:
            return job.finish(future.result())
        except EmbeddingFailed as error:
            self._wait_idle()
            raise job.named(error) from None

    def _wait_idle(self) -> None:
        """Wait until nothing is left of a request that failed, if that could change how the next one is computed."""


class EngineBackend(ModelBackend):
    """Computes parts with a model in this process."""

    def __init__(
        self, config: EngineConfig, options: EmbedOptions, settings: Mapping[str, Any], *, cached: bool = False
    ):
        """Load a model.

        Args:
            config: Its settings.
            options: How texts are read and vectors written.
            settings: Of `SETTINGS`, what takes the place of what `config` leaves to embellama.
            cached: Whether rows come from the cache of `config` and go into it. Their last digits are then those of
                whatever they were first computed beside.

        Raises:
            ConfigError, ModelLoadError: As `EmbeddingEngine.load_model` does.
            InputError: An option is wrong.
        """
        config = as_before(config, settings).checked()
        # No cache: of two equal texts in two parts, one would have the other's last digits, unless a run began between
        # them. Always so many threads for a batch: whether it is alone at the end of a part is a matter of time.
        config = msgspec.structs.replace(config, n_threads=config.n_threads_busy, **({} if cached else NO_CACHE))
        super().__init__(LoadedModel(config), options)

    def _wait_idle(self) -> None:
        # The next request's batches depend on how many threads are free.
        if isinstance(self._model.backend, Pool):
            self._model.backend.wait_idle()

    def facts(self) -> dict[str, object]:
        """Return what vectors depend on, as `BulkBackend.facts` says."""
        return super().facts() | {"settings": {name: getattr(self._model.config, name) for name in SETTINGS}}


def as_before(config: AnyEngine, settings: Mapping[str, Any]) -> AnyEngine:
    """Return a config with earlier `SETTINGS` in the place of what it leaves to embellama."""
    left = {name: value for name, value in settings.items() if getattr(config, name) in (0, "auto")}
    return msgspec.structs.replace(config, **left)


def chunker_of(jobs: Jobs, job: BulkJob) -> Chunker | None:
    """Return what cuts documents into chunks of a model's tokens, as a job says; None if it wants none.

    Raises:
        InputError: The model does not read as many tokens.
    """
    if job.chunk_tokens is None:
        return None
    tokenizer = jobs.tokenizer
    written = _written(_prompt(jobs, job), job)
    around = len(tokenizer.bare([written.replace("{text}", "a")])[0]) - len(tokenizer.bare(["a"])[0])
    most = tokenizer.limit - tokenizer.n_special - around
    told = f"this model reads {tokenizer.limit} tokens, of which {tokenizer.limit - most} are special or its prompt's"
    check_number("chunk_tokens", job.chunk_tokens, told, 1, most)
    return Chunker(tokenizer, job.chunk_tokens, job.chunk_overlap, late=job.late_chunking)


def _prompt(jobs: Jobs, options: EmbedOptions) -> Prompt | None:
    return None if options.prompt is None else jobs.prompts[options.prompt]


def _written(prompt: Prompt | None, options: EmbedOptions) -> str:
    """Return the prompt around a text, with its fields."""
    return "{text}".join(prompt.around(options.fields or {})) if prompt else "{text}"


def _embedded(found: Embeddings) -> list[Outcome]:
    return list(map(Embedded, found.vectors, found.n_tokens.tolist(), found.n_cut.tolist()))
