"""`RemoteModel`: a model whose file is here and whose rows other servers compute.

texts ── Jobs, of the file here ──► token ids ── RemotePool ──► servers ──► rows ── Job.finish ──► vectors

What a text's tokens are, and what is made of rows, is decided here; so the weights must be the servers', by their hash.
"""

from embellama.cache.key import weights_hash
from embellama.config import EngineConfig, convert
from embellama.errors import ConfigError, Unavailable
from embellama.gguf.weights import Weights
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.options import EmbedOptions
from embellama.remote.client import RemoteClient
from embellama.remote.config import RemoteConfig
from embellama.remote.pool import RemotePool


class RemoteModel:
    """A model that other servers compute, used as one in memory is.

    Attributes:
        config: Its settings: those of the servers, as far as they tell them.
        jobs: Makes jobs for it.
        info: Its description.
        backend: Computes the rows of its jobs.
    """

    def __init__(self, config: RemoteConfig):
        """Ask the servers of a checked config which model they have, and read the vocabulary of `tokenizer_path`.

        Raises:
            ConfigError: Their weights, or what they do with them, are not those of the file.
            ModelLoadError: The file cannot be read.
            Unavailable: A server does not answer.
        """
        own = weights_hash(config.tokenizer_path).hex()
        client = RemoteClient(config, EmbedOptions())
        try:
            self.config = _settings(config, client, own)
            weights = Weights(self.config, vocab_only=True)
            self.jobs = Jobs(self.config, weights)
            self.info = ModelInfo.of(self.config, self.jobs, weights)
        except BaseException:
            client.close()
            raise
        self.backend = RemotePool(client, len(config.url))

    def close(self) -> None:
        """End every open request, and hang up."""
        self.backend.close()


def _settings(config: RemoteConfig, client: RemoteClient, own: str) -> EngineConfig:
    """Return the settings with which the file here is read as the servers read theirs."""
    entry, path = client.entry, config.tokenizer_path
    if not client.embellama:
        raise ConfigError(f"tokenizer_path is {path!r}, but not all servers are embellama's, which know its token ids")
    if client.weights != {own}:
        theirs = ", ".join(f"{weights[:12]}…" if weights else "(none told)" for weights in sorted(client.weights))
        raise ConfigError(
            f"tokenizer_path is {path!r}, whose weights have the hash {own[:12]}…; those of {entry.id!r} at "
            f"{', '.join(config.url)} have {theirs}"
        )
    if entry.max_input_tokens is None:
        raise Unavailable(f"{config.url[0]} does not tell how many tokens {entry.id!r} reads")
    values = {
        "model_path": path,
        "model_name": entry.id,
        "pooling": entry.pooling or "auto",
        "normalization": entry.normalization or "l2",
        "n_ctx": entry.max_input_tokens,
        "int8_limit": config.int8_limit,
        "compute": "llama",  # nothing is computed here, so nothing is tried out
    }
    return convert(values, EngineConfig).checked()
