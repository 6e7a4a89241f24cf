"""`RemoteBackend`: other servers compute a run's parts; `RemoteModelBackend`: those that have a model that is here too.

a part's texts ── submit ──► RemoteClient ──► servers ──► RemoteClient ──► outcomes
               ── submit ──► token ids ── RemoteModel ──► servers ──► rows ──► outcomes
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from embellama.bulk.backend import Embedded, ModelBackend, Outcome, Text
from embellama.bulk.documents.chunks import Chunker
from embellama.bulk.job import BulkJob
from embellama.options import EmbedOptions
from embellama.remote.client import RemoteClient, RemoteOutcome, RemoteVector
from embellama.remote.config import RemoteConfig
from embellama.remote.model import RemoteModel

# So many numbers of the vector of a fixed text tell a server's model from others, where no hash does.
N_PROBED = 8

# A server may compute the same vector with other kernels, or in another format: by so much of its largest number.
SAME = 0.02


class RemoteBackend:
    """Computes parts with other servers.

    Attributes:
        n_parts: One part is with the servers at a time.
    """

    n_parts = 1

    def __init__(self, config: RemoteConfig, options: EmbedOptions, earlier: Mapping[str, Any]):
        """Ask the servers which model they have.

        Args:
            config: Which servers, and how they are asked.
            options: How texts are read and vectors written.
            earlier: The facts of the run that is gone on with; none if it begins.

        Raises:
            ConfigError, InvalidOption, Unavailable: As `RemoteClient` does.
        """
        self._config, self._options = config.checked(), options
        self._client = RemoteClient(self._config, options)
        self._probe = _described(self._client.probe[:N_PROBED].tolist(), str(earlier.get("probe", "")))

    @property
    def dim(self) -> int:
        """Numbers of a vector, before `dtype`."""
        return self._options.dimensions or self._client.dim

    def facts(self) -> dict[str, object]:
        """Return what vectors depend on, as `BulkBackend.facts` says, and as far as the servers tell it."""
        entry = self._client.entry
        return {
            "name": entry.id,
            "weights_sha256": entry.weights_sha256,
            "pooling": entry.pooling,
            "normalization": entry.normalization,
            "dim": self._client.dim,
            "probe": self._probe,
            "prompt_identity": self._client.prompt,
            "max_batch_size": self._config.max_batch_size,
            "int8_limit": self._config.int8_limit,
        }

    def chunker(self, job: BulkJob) -> Chunker | None:
        """Return None: `run` refuses jobs that want chunks, as without `tokenizer_path` nobody knows the tokens."""
        assert job.chunk_tokens is None
        return None

    def submit(self, texts: Sequence[Text]) -> "Future[list[Outcome]]":
        """Compute texts, as `BulkBackend.submit` says; there are no chunks among them."""
        made: Future[list[Outcome]] = Future()

        def finish(done: "Future[list[RemoteOutcome]]") -> None:
            if done.cancelled():  # by `close`
                made.cancel()
            elif error := done.exception():
                made.set_exception(error)
            else:
                made.set_result([Embedded(*each) if isinstance(each, RemoteVector) else each for each in done.result()])

        self._client.embed([text for text in texts if isinstance(text, str)]).add_done_callback(finish)
        return made

    def close(self) -> None:
        """Drop what was submitted, and hang up."""
        self._client.close()


class RemoteModelBackend(ModelBackend):
    """Computes parts with servers of a model whose file is here too: what it does to texts and rows is done here."""

    def __init__(self, config: RemoteConfig, options: EmbedOptions):
        """Ask the servers which model they have, and compare it with the file.

        Raises:
            ConfigError, ModelLoadError, Unavailable: As `RemoteModel` does.
            InputError: An option is wrong.
        """
        self._config = config.checked()
        super().__init__(RemoteModel(self._config), options)

    def facts(self) -> dict[str, object]:
        """Return what vectors depend on, as `BulkBackend.facts` says, and as far as the servers tell it."""
        config = self._model.config
        return super().facts() | {
            "pooling": config.pooling,
            "normalization": config.normalization,
            "dim": self._model.info.dim,
            "max_batch_size": self._config.max_batch_size,
            "int8_limit": config.int8_limit,
        }


def _described(numbers: Sequence[float], earlier: str) -> str:
    """Write the first numbers of a vector; where they are those of an earlier run but for rounding, as it did."""
    values = np.asarray(numbers, np.float64)
    if earlier:
        before = np.array([float(each) for each in earlier.split()])
        if len(before) == len(values) and np.abs(before - values).max() <= SAME * np.abs(before).max():
            return earlier
    return " ".join(f"{value:.4g}" for value in values)
