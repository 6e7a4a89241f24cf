"""Choose what computes texts, as a config says: a model in this process, actors of a cluster, or other servers."""

from collections.abc import Mapping
from typing import Any

from embellama.bulk.backend import BulkBackend, EngineBackend
from embellama.bulk.cluster import ClusterConfig
from embellama.bulk.extra import extra
from embellama.config import EngineConfig
from embellama.options import EmbedOptions
from embellama.remote.config import RemoteConfig


def backend_of(config: EngineConfig | RemoteConfig, options: EmbedOptions, earlier: Mapping[str, Any]) -> BulkBackend:
    """Load a model, here or on a cluster, or ask servers which they have.

    Args:
        config: Which.
        options: How texts are read and vectors written.
        earlier: The facts (`BulkBackend.facts`) of vectors that there are already; empty if there are none. What
            `config` leaves to embellama is as it was for them.

    Raises:
        ConfigError, ModelLoadError, InputError, Unavailable: As `EngineBackend`, `RayBackend` and `RemoteBackend` do.
    """
    if isinstance(config, ClusterConfig) and config.ray:
        extra("ray", "clusters", "ray")
        from embellama.bulk.ray import RayBackend  # with packages that only it needs

        return RayBackend(config, options, earlier.get("settings", {}))
    if isinstance(config, EngineConfig):
        return EngineBackend(config, options, earlier.get("settings", {}))
    for name in ("httpx", "tenacity", "aiolimiter"):
        extra(name, "other servers")
    from embellama.bulk.remote import RemoteBackend, RemoteModelBackend  # with packages that only they need

    return RemoteModelBackend(config, options) if config.tokenizer_path else RemoteBackend(config, options, earlier)
