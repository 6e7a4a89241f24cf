"""Settings of the library, each defined once: how a model is loaded and run.

From the fields below come the keywords, the builder, the command line's flags and the `EMBELLAMA_*`
variables (`embellama.cli.flags`). The server adds its own fields beside these.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from embellama.errors import ConfigError
from embellama.machine.cgroups import cpu_quota
from embellama.outputs import check_normalization
from embellama.pooling import Pooling

Config = TypeVar("Config", bound="EngineConfig")
Settings = TypeVar("Settings", bound=msgspec.Struct)

# Marks a field whose 0 lets the engine choose; users read and write that 0 as auto (`embellama.cli.flags`).
AUTO = {"auto": True}

# More contexts than this in one process stop paying: each holds its own compute buffers (tens of MB).
MAX_AUTO_WORKERS = 8

# Tokens computed together where nothing was measured: 96 to 256 were within noise of the best on two x86 machines.
DEFAULT_BATCH_TOKENS = 192

# Fields of an `EngineConfig` that say where known rows are kept.
CACHE_SETTINGS = ("cache_bytes", "cache_file", "cache_file_bytes", "redis_url", "cache_ttl_s")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one model: how it is loaded and run.

    Build it from keywords, `EngineConfig(model_path="m.gguf")`, or step by step with `builder()`.
    A config is not checked when it is made, but by `checked()`. Where a description says auto, the value here is 0.
    """

    model_path: Annotated[str, Meta(min_length=1, pattern=r"^[^\0]*$", description="GGUF file to load.")]
    model_name: Annotated[str, Meta(description="Name to call it by; by default the file's name without .gguf.")] = ""
    n_ctx: Annotated[
        int, Meta(ge=0, description="Most tokens in one text; auto takes the model's own limit.", extra=AUTO)
    ] = 0
    num_workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Contexts that run at once; auto takes one for each core, at most 8.",
            extra={"flag": "workers", **AUTO},
        ),
    ] = 0
    n_threads: Annotated[
        int,
        Meta(
            ge=0,
            le=512,
            description="Threads for one batch; auto gives each busy worker its share of the cores, a lone one all.",
            extra=AUTO,
        ),
    ] = 0
    n_gpu_layers: Annotated[int, Meta(ge=-1, description="Layers to put on the GPU; -1 puts all there.")] = 0
    max_batch_size: Annotated[int, Meta(ge=1, le=256, description="Most texts computed together in one batch.")] = 64
    max_batch_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=131_072,
            description="Most tokens computed together; a longer text goes alone; auto measures at the first start.",
            extra=AUTO,
        ),
    ] = 0
    compute: Annotated[
        Literal["auto", "llama", "avx2", "avx512", "avx512_bf16", "amx"],
        Meta(
            description="What computes the layers: auto measures at the first start; llama is llama.cpp's own code; "
            "or the instruction set of our kernels."
        ),
    ] = "auto"
    pooling: Annotated[
        Literal["auto", Pooling],
        Meta(description="How tokens become one vector: auto takes the file's; mean, cls, last, max, mean-sqrt, rank."),
    ] = "auto"
    normalization: Annotated[
        str, Meta(description="How vectors are scaled: l2, none, max-abs (to int16's range) or a p-norm such as l1.")
    ] = "l2"
    int8_limit: Annotated[
        float,
        Meta(gt=0, le=1e30, description="The value that 127 stands for in int8 vectors; larger ones are clipped."),
    ] = 1.0
    prompts_file: Annotated[
        str,
        Meta(description="TOML file of prompts, asked before the built-in ones; a server reads it again on SIGHUP."),
    ] = ""
    cache_bytes: Annotated[
        int, Meta(ge=0, description="Most bytes of known rows to keep in memory; 0 keeps none there.")
    ] = 64 * 1024 * 1024
    cache_file: Annotated[
        str, Meta(pattern=r"^[^\0]*$", description="SQLite file to keep known rows in; none by default.")
    ] = ""
    cache_file_bytes: Annotated[
        int, Meta(ge=1, description="Most bytes of it in use; the rows used longest ago are dropped.")
    ] = 4 * 1024 * 1024 * 1024
    redis_url: Annotated[
        str,
        Meta(description="Redis to keep known rows in, such as redis://host:6379/0 (extra redis); none by default."),
    ] = ""
    cache_ttl_s: Annotated[
        int, Meta(ge=0, description="Seconds after which a known row is computed again; 0 for never.")
    ] = 0

    @staticmethod
    def builder() -> "EngineConfigBuilder":
        """Start a config to be built step by step: `builder().with_model_path("m.gguf").build()`."""
        return EngineConfigBuilder()

    def checked(self: Config) -> Config:
        """Return this config with every field checked, and names and counts filled in.

        Raises:
            ConfigError: A field has the wrong type or is out of range.
        """
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        if isinstance(self.model_path, os.PathLike):
            values["model_path"] = os.fspath(self.model_path)
        config = convert(values, type(self))
        check_normalization(config.normalization)
        return msgspec.structs.replace(
            config,
            model_name=config.model_name or Path(config.model_path).stem,
            num_workers=config.num_workers or min(n_cores(), MAX_AUTO_WORKERS),
        )

    @property
    def n_threads_busy(self) -> int:
        """Threads for a batch while other batches run."""
        return self.n_threads or max(1, n_cores() // max(1, self.num_workers))

    @property
    def n_threads_alone(self) -> int:
        """Threads for a batch that has the machine to itself."""
        return self.n_threads or n_cores()


class EngineConfigBuilder:
    """Collects settings for an `EngineConfig`, one `with_<field>(value)` for each field."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        field = name.removeprefix("with_")
        if field == name or field not in EngineConfig.__struct_fields__:
            raise AttributeError(f"EngineConfigBuilder has no {name!r}; it has {', '.join(self.__dir__())}")

        def setter(value: Any) -> "EngineConfigBuilder":
            self._values[field] = value
            return self

        return setter

    def __dir__(self) -> list[str]:
        return ["build", *(f"with_{field}" for field in EngineConfig.__struct_fields__)]

    def build(self) -> EngineConfig:
        """Check everything and return the config.

        Raises:
            ConfigError: A field is missing, of the wrong type or out of range.
        """
        if "model_path" not in self._values:
            raise ConfigError("model_path is missing: it names the GGUF file to load")
        return EngineConfig(**self._values).checked()


def convert(values: dict[str, Any], kind: type[Settings], *, strict: bool = True) -> Settings:
    """Turn field values into a config; with `strict` off, numbers may come as strings.

    Raises:
        ConfigError: Names the field, its value and what is allowed.
    """
    plain = {name: 0 if value == "auto" and name in auto_fields(kind) else value for name, value in values.items()}
    try:
        return msgspec.convert(plain, kind, strict=strict)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        field = where.rstrip("`")
        # What is not strict was written by hand, numbers too.
        shown = f"{values.get(field)!r}" if strict else values.get(field)
        value = f"{field} is {shown}: " if field in values else ""
        if reason.startswith("Invalid enum value") and (allowed := _choices(kind).get(field)):
            reason = f"it must be one of {', '.join(allowed)}"
        raise ConfigError(f"{value}{reason[0].lower()}{reason[1:]}") from None


def fields(kind: type[msgspec.Struct]) -> Sequence[msgspec.inspect.Field]:
    """Return the fields of `kind` with their types, defaults and descriptions."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def _choices(kind: type[msgspec.Struct]) -> dict[str, list[str]]:
    """Return the allowed words of each field of `kind` that takes one of a few."""
    types = {field.name: getattr(field.type, "type", field.type) for field in fields(kind)}  # without its description
    return {name: list(map(str, t.values)) for name, t in types.items() if isinstance(t, msgspec.inspect.LiteralType)}


@functools.cache
def auto_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the fields of `kind` whose 0 is written auto."""
    marked = [field for field in fields(kind) if isinstance(field.type, msgspec.inspect.Metadata)]
    return frozenset(field.name for field in marked if (field.type.extra or {}).get("auto"))  # type: ignore[attr-defined]


def n_cores() -> int:
    """Count the cores this process may use: its affinity, and its container's share."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    # A share of 1.5 counts as 2: with two workers it embeds 1.5 times as many texts as with one, and with two threads a
    # lone text takes 0.63 of the time.
    return n if quota is None else max(1, min(n, math.ceil(quota)))
