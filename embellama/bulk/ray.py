"""`RayBackend`: actors of a Ray cluster compute a run's parts, each part whole.

a part's texts ── submit ──► ActorPool: an idle actor ══► PartComputer: fetched ──► EngineBackend, for this part alone
outcomes ◄─── a future ◄─── unpacked ◄── columns ◄══════ packed ◄──────────────────────╯

An actor computes a part as a process without Ray would with its settings, so the outputs have the same bytes; their
order, the checkpoints and the files stay with `run`. What an actor leaves when it dies is another's, at once; Ray
starts it again where there is room. All actors have the settings and the weights of the first one, or the run ends.
"""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import ray

from embellama.bulk.backend import EngineBackend, Outcome, Text, as_before, chunker_of
from embellama.bulk.cluster import ClusterConfig, for_cpus
from embellama.bulk.documents.chunks import Chunker
from embellama.bulk.fetch import alone, fetched, loading_lock
from embellama.bulk.job import BulkJob
from embellama.bulk.ray_actors import ActorPool, Packed, packed
from embellama.config import EngineConfig
from embellama.errors import ConfigError, EmbellamaError
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import EmbedOptions

# A head that does not answer within so long is not there.
CONNECT_S = 10.0

# Parts for each actor: one that it computes, and one that waits here until it has.
PARTS_AN_ACTOR = 2


class RayBackend:
    """Computes parts with actors."""

    def __init__(self, config: ClusterConfig, options: EmbedOptions, settings: Mapping[str, Any]):
        """Join the cluster and start actors.

        Args:
            config: The model's settings, and the cluster's.
            options: How texts are read and vectors written.
            settings: Earlier ones of `backend.SETTINGS`, as `EngineBackend` takes them.

        Raises:
            ConfigError: There is no cluster, or no node of it has as many CPUs as an actor needs.
            EmbellamaError: As `EngineBackend` does, on the node of the first actor.
            Unavailable: No actor could be started in time.
        """
        self._joined = _join(config.ray)
        self._pool: ActorPool | None = None
        try:
            nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
            cpus = [n for n in nodes if n >= 1]
            if not cpus:
                raise ConfigError(f"ray is {config.ray!r}: its nodes have {nodes} CPUs, and an actor needs 1")
            engine = _with_absolute_paths(for_cpus(as_before(config.engine, settings), min(cpus)))
            n_cpus = engine.num_workers * engine.n_threads
            most = sum(math.floor(n / n_cpus) for n in cpus)
            if not most:
                raise ConfigError(
                    f"num_workers is {engine.num_workers} and n_threads {engine.n_threads}: an actor needs {n_cpus} "
                    f"CPUs, and no node of the cluster has more than {max(cpus):g}"
                )
            self._engine = engine
            self._pool = ActorPool(
                PartComputer, (engine, options, settings), n_cpus, min(config.ray_actors or most, most)
            )
            self._dim: int = self._pool.first[0]
            self._facts: dict[str, object] = self._pool.first[1]
        except BaseException:
            self.close()
            raise

    @property
    def dim(self) -> int:
        """Numbers of a vector, before `dtype`."""
        return self._dim

    @property
    def n_parts(self) -> int:
        """Parts that keep all actors busy."""
        assert self._pool
        return PARTS_AN_ACTOR * self._pool.n_actors

    def facts(self) -> dict[str, object]:
        """Return what vectors depend on, as `BulkBackend.facts` says: as the first actor has it."""
        return self._facts

    def chunker(self, job: BulkJob) -> Chunker | None:
        """Return what cuts documents into chunks, as `BulkBackend.chunker` says; it is done in this process."""
        if job.chunk_tokens is None:
            return None
        config = msgspec.structs.replace(self._engine, model_path=fetched(self._engine.model_path)).checked()
        return chunker_of(Jobs(config, Weights(config, vocab_only=True)), job)

    def submit(self, texts: Sequence[Text]) -> "Future[list[Outcome]]":
        """Compute texts, as `BulkBackend.submit` says, whatever becomes of those submitted before."""
        assert self._pool
        return self._pool.submit(texts)

    def close(self) -> None:
        """Drop what was submitted, end the actors, and leave the cluster."""
        if self._pool:
            self._pool.close()
        if self._joined:
            ray.shutdown()


class PartComputer:
    """An actor that computes parts with a model of its own."""

    def __init__(self, config: EngineConfig, options: EmbedOptions, settings: Mapping[str, Any]):
        self._failed: EmbellamaError | None = None
        try:
            self._backend = loaded(config, options, settings)
        except EmbellamaError as error:  # told to who asks: Ray would only say that the actor died
            self._failed = error

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def describe(self) -> tuple[int, dict[str, object]]:
        """Return `EngineBackend.dim` and `EngineBackend.facts`, or raise why there is no model."""
        if self._failed:
            raise self._failed
        return self._backend.dim, self._backend.facts()

    def compute(self, texts: Sequence[Text]) -> Packed:
        """Compute a part's texts."""
        return packed(self._backend.submit(texts).result())


def loaded(
    config: EngineConfig, options: EmbedOptions, settings: Mapping[str, Any], *, cached: bool = False
) -> EngineBackend:
    """Load a model in an actor: its file fetched, and one process of a machine at a time, so that the first one alone
    measures what the others then know. Raises as `EngineBackend` does."""
    path, prompts = fetched(config.model_path), fetched(config.prompts_file)
    config = msgspec.structs.replace(config, model_path=path, prompts_file=prompts)
    with alone(loading_lock(path)):
        return EngineBackend(config, options, settings, cached=cached)


def _with_absolute_paths(config: EngineConfig) -> EngineConfig:
    """Make paths absolute, as actors run in other folders."""
    paths = {name: getattr(config, name) for name in ("model_path", "prompts_file")}
    absolute = {name: os.path.abspath(path) for name, path in paths.items() if path and "://" not in path}
    return msgspec.structs.replace(config, **absolute)


def _join(address: str) -> bool:
    """Join a cluster, unless this process is in one; return whether it was joined here."""
    if ray.is_initialized():
        return False
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a job that is run here tells nobody
    try:
        if ":" in address:  # Ray asks an address where nobody is for minutes, and then ends the process
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        options = {"include_dashboard": False} if address == "local" else {}
        with contextlib.redirect_stdout(None):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"ray is {address!r}: {str(error).strip() or type(error).__name__}") from None
    return True
