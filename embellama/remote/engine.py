"""`RemoteEngine`: a model of other servers, whose file is here, used as an `EmbeddingEngine` of one model is.

texts ── JobRunner ──► RemoteModel: token ids ──► servers ──► rows ──► vectors
"""

from collections.abc import Iterable
from typing import Unpack

from embellama.info import ModelInfo
from embellama.options import EmbedKeywords, EmbedOptions, Truncate
from embellama.remote.config import RemoteConfig
from embellama.remote.model import RemoteModel
from embellama.results import Embeddings, Outcomes
from embellama.runner import JobRunner
from embellama.text.tokenizer import Tokenized


class RemoteEngine:
    """One model; its methods are those of `EmbeddingEngine`, and `model` is always None."""

    def __init__(self, config: RemoteConfig):
        """Ask the servers of a checked config which model they have, and compare it with the file of `tokenizer_path`.

        Raises:
            ConfigError, ModelLoadError, Unavailable: As `RemoteModel` does.
        """
        self._model = RemoteModel(config)
        self._runner = JobRunner(self)

    def get(self, name: str | None) -> RemoteModel:
        """Return the model, for the runner."""
        return self._model

    def model_info(self, model: str | None = None) -> ModelInfo:
        """Describe the model."""
        return self._model.info

    def encode(self, model: str | None, texts: Iterable[str], **options: Unpack[EmbedKeywords]) -> Embeddings:
        """Embed texts, as `EmbeddingEngine.encode` does."""
        return self._runner.run(model, lambda jobs: jobs.encode(texts, EmbedOptions(**options)))

    def encode_each(self, model: str | None, texts: Iterable[str], **options: Unpack[EmbedKeywords]) -> Outcomes:
        """Embed texts of which some may be at fault, as `EmbeddingEngine.encode_each` does."""
        return self._runner.run_each(model, texts, EmbedOptions(**options))

    def tokenize(self, model: str | None, texts: Iterable[str], truncate: Truncate = "none") -> Tokenized:
        """Return texts' token ids, as `EmbeddingEngine.tokenize` does."""
        return self._model.jobs.tokenizer.encode(texts, truncate)

    def close(self) -> None:
        """End every open request, and hang up."""
        self._model.close()
