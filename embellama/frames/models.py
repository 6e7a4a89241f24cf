"""`FrameModel`: what computes a frame's texts, and how long its vectors are before anything is loaded.

path, EngineConfig ──► FileModel ──► an engine that the process shares
EmbeddingEngine ─────► EngineModel ──► that engine
remote(url, name) ───► Remote ──► a client that the process shares ══► servers
    tokenizer_path ──► RemoteFile ──► a RemoteEngine that it shares: token ids ══► servers
"""

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Unpack, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.bulk.extra import extra
from embellama.config import EngineConfig
from embellama.engine import EmbeddingEngine
from embellama.errors import ConfigError, EmbellamaError, InputError
from embellama.frames.shared import Shared
from embellama.gguf.header import Header
from embellama.gguf.weights import dim_of, pooling_of
from embellama.info import ModelInfo
from embellama.options import EmbedKeywords, EmbedOptions, Truncate
from embellama.remote.config import RemoteConfig
from embellama.results import Embeddings, Outcomes
from embellama.text.tokenizer import Tokenized

# Bytes of known rows that an engine of a path keeps. Slices of a frame come one after another, and a text that is in
# two of them is computed once as long as its row is kept: 256 MiB hold 145,000 rows of 384 numbers.
CACHE_BYTES = 256 * 1024 * 1024

# Tokens that are not known.
UNKNOWN = -1


class Found(NamedTuple):
    """What came of texts.

    vectors: ``(n_texts, width)``; of a text in `errors` without meaning.
    n_tokens: Tokens computed for each, ``(n_texts,) int32``; `UNKNOWN` where a server does not tell.
    n_cut: Tokens left out of each, likewise.
    errors: Why texts have no vector, by their positions.
    """

    vectors: NDArray[Any]
    n_tokens: NDArray[np.int32]
    n_cut: NDArray[np.int32]
    errors: dict[int, EmbellamaError]

    @classmethod
    def empty(cls, n_texts: int, width: int, numbers: np.dtype[Any]) -> "Found":
        """Make room for texts of which nothing is known yet."""
        unknown = np.full(n_texts, UNKNOWN, np.int32)
        return cls(np.zeros((n_texts, width), numbers), unknown, unknown.copy(), {})


class FrameModel(Protocol):
    """Computes the texts of frames. Hashable: equal ones compute the same."""

    def dim(self, options: EmbedOptions) -> int:
        """Return the length of a vector before `dimensions` cuts it, and load no model for it.

        Raises:
            ModelLoadError, Unavailable: The file, or a server, does not tell.
            InputError: It gives no vectors of texts: it is a reranker, or pools nothing.
        """

    def shared(self, options: EmbedOptions) -> object:
        """Return what computes, loaded now if this is its first use; of equal models and options the same object."""

    def find(self, texts: Sequence[str], options: EmbedOptions, *, each: bool) -> Found:
        """Embed texts, no two of them equal.

        With `each` a text at fault fails by itself; without it the first error is raised, before any text is computed
        if it is one of reading, and its `index` is the text's position.
        """

    def tokenize(self, texts: Sequence[str], truncate: Truncate) -> Tokenized:
        """Return texts' token ids, as `EmbeddingEngine.tokenize` does."""


class Engine(Protocol):
    """What frames need of an engine: an `EmbeddingEngine`, a `RemoteEngine`."""

    def model_info(self, model: str | None = None) -> ModelInfo: ...

    def encode(self, model: str | None, texts: Iterable[str], **options: Unpack[EmbedKeywords]) -> Embeddings: ...

    def encode_each(self, model: str | None, texts: Iterable[str], **options: Unpack[EmbedKeywords]) -> Outcomes: ...

    def tokenize(self, model: str | None, texts: Iterable[str], truncate: Truncate = "none") -> Tokenized: ...

    def close(self) -> None: ...


class EngineModel(NamedTuple):
    """The default model of an engine that somebody else made, and closes."""

    engine: Engine

    def dim(self, options: EmbedOptions) -> int:
        info = self.engine.model_info()
        _check_gives_vectors(info.name, info.pooling)
        return info.dim

    def shared(self, options: EmbedOptions) -> object:
        return self.engine

    def find(self, texts: Sequence[str], options: EmbedOptions, *, each: bool) -> Found:
        keywords = cast(EmbedKeywords, msgspec.structs.asdict(options))
        if not each:
            return Found(*self.engine.encode(None, texts, **keywords), {})
        good, made, errors = self.engine.encode_each(None, texts, **keywords)
        if not errors:
            return Found(*made, {})
        found = Found.empty(len(texts), made.vectors.shape[1], made.vectors.dtype)
        for whole, part in zip(found, made, strict=False):
            whole[good] = part  # type: ignore[index]
        return found._replace(errors=dict(errors))

    def tokenize(self, texts: Sequence[str], truncate: Truncate) -> Tokenized:
        return self.engine.tokenize(None, texts, truncate)


class FileModel(NamedTuple):
    """A model of this process, loaded when it is first used. `config` is checked, and its paths are absolute."""

    config: EngineConfig

    def dim(self, options: EmbedOptions) -> int:
        config = self.config
        header = Header(config.model_path)
        pooling = pooling_of(header, config.pooling)
        _check_gives_vectors(config.model_name, pooling)
        return dim_of(header, pooling)

    def shared(self, options: EmbedOptions) -> EmbeddingEngine:
        return engines.get(self.config)

    def find(self, texts: Sequence[str], options: EmbedOptions, *, each: bool) -> Found:
        return EngineModel(self.shared(options)).find(texts, options, each=each)

    def tokenize(self, texts: Sequence[str], truncate: Truncate) -> Tokenized:
        return engines.get(self.config).tokenize(None, texts, truncate)


class Remote(NamedTuple):
    """A model that servers compute; `remote` makes it."""

    config: RemoteConfig

    def dim(self, options: EmbedOptions) -> int:
        return int(self.shared(options).dim)

    def shared(self, options: EmbedOptions) -> Any:
        return clients.get((self.config, msgspec.json.encode(options)))

    def find(self, texts: Sequence[str], options: EmbedOptions, *, each: bool) -> Found:
        outcomes = self.shared(options).embed(texts).result(threading.TIMEOUT_MAX)  # see `runner._finished`
        errors = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, EmbellamaError)}
        made = [outcome for outcome in outcomes if not isinstance(outcome, EmbellamaError)]
        if not made:
            return Found.empty(len(texts), 0, np.dtype(np.float32))._replace(errors=errors)
        found = Found.empty(len(texts), len(made[0].vector), made[0].vector.dtype)
        for i, outcome in enumerate(outcomes):
            if i not in errors:
                found.vectors[i] = outcome.vector
                found.n_tokens[i] = UNKNOWN if outcome.n_tokens is None else outcome.n_tokens
                found.n_cut[i] = UNKNOWN if outcome.n_cut is None else outcome.n_cut
        return found._replace(errors=errors)

    def tokenize(self, texts: Sequence[str], truncate: Truncate) -> Tokenized:
        raise InputError(
            f"{', '.join(self.config.url)}: servers do not tell token ids; give tokenizer_path, the model's file"
        )


class RemoteFile(NamedTuple):
    """A model that servers compute and whose file is here too, so that texts become token ids here."""

    config: RemoteConfig

    def dim(self, options: EmbedOptions) -> int:
        return EngineModel(self.shared(options)).dim(options)

    def shared(self, options: EmbedOptions) -> Engine:
        return remote_engines.get(self.config)

    def find(self, texts: Sequence[str], options: EmbedOptions, *, each: bool) -> Found:
        return EngineModel(self.shared(options)).find(texts, options, each=each)

    def tokenize(self, texts: Sequence[str], truncate: Truncate) -> Tokenized:
        return remote_engines.get(self.config).tokenize(None, texts, truncate)


def remote(url: str | Sequence[str], model: str = "", **settings: Any) -> Remote | RemoteFile:
    """Name a model that servers compute, embellama's or any that answer OpenAI's embeddings.

    Args:
        url: A server, such as ``http://127.0.0.1:8000``, or several that have the same model.
        model: Its name there; "" where the servers list only one.
        **settings: Other fields of `RemoteConfig`: `api_key`, `concurrency`, `rate_limit`, …; with `tokenizer_path` the
            model's file is here too, and texts become token ids here.

    Raises:
        ConfigError: A setting is wrong, or none of that name.
    """
    urls = (url,) if isinstance(url, str) else tuple(url)
    if unknown := sorted({*settings} - {*RemoteConfig.__struct_fields__}):
        raise ConfigError(f"remote has no setting {unknown[0]!r}; it has {', '.join(RemoteConfig.__struct_fields__)}")
    config = RemoteConfig(url=urls, model_name=model, **settings).checked()
    if not config.tokenizer_path:
        return Remote(config)
    return RemoteFile(msgspec.structs.replace(config, tokenizer_path=os.path.abspath(config.tokenizer_path)))


#: What a column's texts are computed with: a GGUF file, its settings, an engine, or servers.
Model = str | os.PathLike[str] | EngineConfig | EmbeddingEngine | Remote | RemoteFile


def model_of(model: Model) -> FrameModel:
    """Return what computes the texts; nothing is loaded.

    Raises:
        ConfigError: `model` is none of these, or a setting is wrong.
    """
    match model:
        case Remote() | RemoteFile():
            return model
        case EmbeddingEngine():
            return EngineModel(model)
        case EngineConfig():
            config = model
        case str() if model.startswith(("http://", "https://")):
            raise ConfigError(f"model is {model!r}, which is no file: a server is given as remote({model!r}, name)")
        case str() | os.PathLike():
            config = EngineConfig(model_path=os.fspath(model), cache_bytes=CACHE_BYTES)
        case _:
            raise ConfigError(
                f"model is {model!r}; it must be the path of a GGUF file, an EngineConfig, an EmbeddingEngine or "
                "remote(url, name)"
            )
    config = config.checked()
    prompts_file = config.prompts_file and os.path.abspath(config.prompts_file)
    paths = {"model_path": os.path.abspath(config.model_path), "prompts_file": prompts_file}
    return FileModel(msgspec.structs.replace(config, **paths))


def _engine(config: EngineConfig) -> EmbeddingEngine:
    if engines.in_fork:
        # A batch on several threads would wait for ever: GNU OpenMP, which llama.cpp computes with, believes that the
        # parent's threads are here.
        config = msgspec.structs.replace(config, n_threads=1)
    return EmbeddingEngine(config)


def _client(key: tuple[RemoteConfig, bytes]) -> Any:
    _check_packages()
    from embellama.remote.client import RemoteClient  # with packages that only it needs

    config, options = key
    return RemoteClient(config, msgspec.json.decode(options, type=EmbedOptions))


def _remote_engine(config: RemoteConfig) -> Engine:
    _check_packages()
    from embellama.remote.engine import RemoteEngine  # with packages that only it needs

    return RemoteEngine(config)


def _check_packages() -> None:
    for name in ("httpx", "tenacity", "aiolimiter"):
        extra(name, "other servers")


def _check_gives_vectors(name: str, pooling: str) -> None:
    if pooling == "rank":
        raise InputError(f"model {name!r} is a reranker, which scores pairs of texts: it gives no vectors")
    if pooling == "none":
        raise InputError(f"model {name!r} has pooling none, so only tokens have vectors")


#: The engines and clients of this process.
engines: Shared[EngineConfig, EmbeddingEngine] = Shared(_engine)
clients: Shared[tuple[RemoteConfig, bytes], Any] = Shared(_client)
remote_engines: Shared[RemoteConfig, Engine] = Shared(_remote_engine)
