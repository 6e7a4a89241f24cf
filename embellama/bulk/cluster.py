"""`ClusterConfig`: how bulk's model is loaded and run, and on which Ray cluster, if not in this process."""

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from embellama.config import MAX_AUTO_WORKERS, EngineConfig
from embellama.errors import ConfigError

Engine = TypeVar("Engine", bound=EngineConfig)

# The port is written out: a file's name that stands where the address should is then told from one.
ADDRESS = re.compile(r"auto|local|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


class ClusterConfig(EngineConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one model and of the cluster that computes with it."""

    ray: Annotated[
        str,
        Meta(
            description="Ray cluster whose actors compute (extra ray): HOST:PORT of its head; auto, or no address, for "
            "the one of this machine or of RAY_ADDRESS; local to start one.",
            extra={"alone": "auto"},
        ),
    ] = ""
    ray_actors: Annotated[
        int,
        Meta(
            ge=0,
            description="Most actors, each with the model; auto takes as many as the cluster's CPUs are enough for.",
            extra={"auto": True},
        ),
    ] = 0

    def checked(self) -> "ClusterConfig":
        """Return this config as `EngineConfig.checked` does; on a cluster, what is left to embellama stays so.

        Raises:
            ConfigError: A field has the wrong type or is out of range.
        """
        checked = super().checked()
        if not self.ray:
            if self.ray_actors:
                raise ConfigError(f"ray_actors is {self.ray_actors}, but there is no ray; without it, it means nothing")
            return checked
        if not ADDRESS.fullmatch(self.ray):
            raise ConfigError(f"ray is {self.ray!r}; it must be auto, local or HOST:PORT")
        return msgspec.structs.replace(checked, num_workers=self.num_workers)  # the CPUs here tell nothing

    @property
    def engine(self) -> EngineConfig:
        """The settings of the model alone."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.__struct_fields__})


def for_cpus(config: Engine, n_cpus: float) -> Engine:
    """Return a config that uses so many CPUs, where it does not say how many.

    An actor sees all of its machine's, whatever part of them it was given.
    """
    n = max(1, int(n_cpus))
    n_workers = config.num_workers or min(MAX_AUTO_WORKERS, max(1, n // (config.n_threads or 1)))
    return msgspec.structs.replace(config, num_workers=n_workers, n_threads=config.n_threads or max(1, n // n_workers))
