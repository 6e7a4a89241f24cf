"""Settings of the server: the library's, and its own.

flags, variables, file ──► ServerConfig ──► pools ──► a ServerConfig for each model
a request of an administrator ────────────► pool ───► a ServerConfig for one more
"""

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from embellama.config import AUTO, EngineConfig, convert
from embellama.errors import ConfigError
from embellama_server.names import without_default_tag

# What a model's own table may set beside the library's settings.
POOL_FIELDS = ("aliases", "queue_size", "queue_tokens", "worker_timeout_ms", "max_worker_memory")
MODEL_FIELDS = (*EngineConfig.__struct_fields__, *POOL_FIELDS)

# As browsers write a page's origin: no path, not even a slash.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")

# How a collector's URL begins.
ENDPOINT = re.compile(r"https?://[^/\s]")

# Written as it is in links, so that nothing in it needs to be encoded.
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")

# Settings that mean something beside another one only.
NEEDS = {
    "open_metrics": "keys_file",
    "cached_token_price": "keys_file",
    "limits_without_redis": "keys_file",
    "data_bytes": "data_dir",
    "otlp_sample_ratio": "otlp_endpoint",
    "request_log_days": "request_log",
    "log_texts": "request_log",
}


class ServerConfig(EngineConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the server. Each field is a flag and an `EMBELLAMA_*` variable (`embellama.cli.flags`)."""

    model_path: Annotated[str, Meta(pattern=r"^[^\0]*$", description="GGUF file to serve, if it is the only one.")] = ""
    aliases: Annotated[
        tuple[str, ...], Meta(description="More names to call the model by, such as one that a client insists on.")
    ] = ()
    models: Annotated[
        tuple[dict[str, Any], ...],
        Meta(description="Models to serve, each with settings of its own.", extra={"flag": ""}),
    ] = ()
    models_dir: Annotated[
        str,
        Meta(description="Folder of GGUF files that may be loaded while the server runs, by /admin/models."),
    ] = ""
    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    tls_cert: Annotated[
        str, Meta(description="PEM file of the certificate and its chain, to speak HTTPS; read again on SIGHUP.")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key, without a password.")] = ""
    keep_alive_s: Annotated[
        int,
        Meta(
            ge=1,
            description="Seconds an idle connection is kept; more than clients and a balancer keep it, who should be "
            "the ones to close.",
        ),
    ] = 65
    root_path: Annotated[
        str, Meta(description="Path below which a proxy serves this server, such as /embeddings, for links.")
    ] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed."),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="Origins whose web pages may ask this server, such as https://example.com; * for all."),
    ] = ()
    page: Annotated[bool, Meta(description="Answer browsers that ask for / with a page to look at.")] = True
    num_workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Worker processes, each with the model; auto takes one for each core, at most 8.",
            extra={"flag": "workers", **AUTO},
        ),
    ] = 0
    queue_size: Annotated[
        int, Meta(ge=1, description="Most requests waiting for a worker; further ones are answered 503 at once.")
    ] = 512
    queue_tokens: Annotated[
        int,
        Meta(ge=1, description="Most tokens waiting for a worker, when any are; further requests are answered 503."),
    ] = 2_000_000
    queue_bytes: Annotated[
        int,
        Meta(ge=1, description="Most bytes of requests and answers held at once; further requests are answered 503."),
    ] = 256 * 1024 * 1024
    max_request_tokens: Annotated[
        int, Meta(ge=1, description="Most tokens in all texts of one request; one with more is answered 400.")
    ] = 300_000
    timeout_ms: Annotated[
        int, Meta(ge=1, description="Milliseconds a request may take, waiting included, before it is answered 504.")
    ] = 30_000
    max_body_bytes: Annotated[int, Meta(ge=1, description="Largest request body; a larger one is answered 413.")] = (
        8 * 1024 * 1024
    )
    drain_timeout_ms: Annotated[
        int, Meta(ge=0, description="Milliseconds for accepted requests to be answered after SIGTERM; then 503.")
    ] = 30_000
    worker_timeout_ms: Annotated[
        int,
        Meta(
            ge=100,
            description="Milliseconds of silence after which a worker is killed; batches get more by their size.",
        ),
    ] = 10_000
    max_worker_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes of memory of its own after which a worker is replaced by a new one; 0 for no limit.",
        ),
    ] = 0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Least severe messages to log; debug includes llama.cpp's own."),
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="How a line of the log is written.")] = "text"
    access_log: Annotated[bool, Meta(description="Log every request.")] = False
    request_log: Annotated[
        str,
        Meta(
            pattern=r"^[^\0]*$",
            description="Folder that gets a JSON line for each request, made if it is missing, for embellama stats.",
        ),
    ] = ""
    request_log_days: Annotated[
        int, Meta(ge=1, le=36_500, description="Days, beside the current one, that the request log is kept.")
    ] = 30
    log_texts: Annotated[bool, Meta(description="Write the beginnings of texts into the request log, too.")] = False
    otlp_endpoint: Annotated[
        str,
        Meta(
            description="Collector that gets traces by OTLP over HTTP, such as http://localhost:4318 (extra otel); "
            "none by default."
        ),
    ] = ""
    otlp_sample_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of requests that are traced, where no client says by its traceparent."),
    ] = 1.0

    data_dir: Annotated[
        str,
        Meta(
            pattern=r"^[^\0]*$",
            description="Folder that keeps files and batches, made if it is missing; with it, there are OpenAI's Files "
            "and Batches.",
        ),
    ] = ""
    data_bytes: Annotated[int, Meta(ge=1, description="Most bytes that files and batches may take in data_dir.")] = (
        10_000_000_000
    )
    keys_file: Annotated[
        str,
        Meta(pattern=r"^[^\0]*$", description="TOML file of API keys; with it, nobody is answered without one."),
    ] = ""
    limits_without_redis: Annotated[
        Literal["open", "closed"],
        Meta(description="While Redis does not answer, limits of keys let all requests pass (open) or none (closed)."),
    ] = "open"
    cached_token_price: Annotated[
        float,
        Meta(
            ge=0, le=1, description="What a token of a text whose row was known costs of a key's tokens; others cost 1."
        ),
    ] = 0.0
    open_metrics: Annotated[bool, Meta(description="Show /metrics to those without a key, too.")] = False

    def checked(self) -> "ServerConfig":
        """Return this config with every field checked, and names and counts filled in.

        Raises:
            ConfigError: A field has the wrong type or is out of range, or there is no model.
        """
        if not self.models and not self.model_path:
            raise ConfigError("no model to serve: give --model-path, or [[models]] in the file of --config")
        if self.models and self.model_path:
            raise ConfigError(f"model_path is {self.model_path!r}, but there are [[models]] too; give one or the other")
        for field in ("model_name", "aliases") if self.models else ():
            if value := getattr(self, field):
                raise ConfigError(f"{field} is {value!r}, but there are [[models]]; each of them has names of its own")
        self._check_needs()
        checked = super().checked()  # with a name, where there was none
        checked._check_edges()
        for field in ("model_path", "model_name", "aliases"):  # answers tell them
            value = getattr(checked, field)
            try:
                "".join(value).encode()
            except UnicodeEncodeError:
                told = "the file's name is not UTF-8; rename it" if field == "model_path" else "it is not UTF-8"
                raise ConfigError(f"{field} is {value!r}: {told}") from None
        return checked

    def pools(self) -> "list[ServerConfig]":
        """Return a config for each model, checked: the server's settings, with the model's own in their place.

        Raises:
            ConfigError: Two models have a name in common, or a model's setting is wrong.
        """
        if not self.models:
            return [self.checked()]
        pools = []
        for i, table in enumerate(self.models):
            try:
                pools.append(self.pool(table))
            except ConfigError as error:
                raise ConfigError(f"models[{i}].{error}") from None
        owners: dict[str, str] = {}
        for pool in pools:
            for name in pool.names:
                if name in owners:
                    raise ConfigError(f"{name!r} names two models, {owners[name]} and {pool.model_path}")
                owners[name] = pool.model_path
        return pools

    def pool(self, settings: dict[str, Any]) -> "ServerConfig":
        """Return the config of one model, checked: the server's settings, with the model's own in their place.

        Raises:
            ConfigError: One of them is wrong, or is not a model's.
        """
        for name in settings:
            if name not in MODEL_FIELDS:
                raise ConfigError(f"{name} is no setting of a model")
        if not settings.get("model_path"):
            raise ConfigError("model_path is missing: it names the GGUF file to load")
        shared = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _OF_ONE_MODEL}
        return convert({**shared, **settings}, ServerConfig).checked()

    @property
    def names(self) -> list[str]:
        """The model's name and aliases, without the default tag, each once."""
        return list(dict.fromkeys(without_default_tag(name) for name in (self.model_name, *self.aliases)))

    def _check_needs(self) -> None:
        """Raise `ConfigError` for a setting that means nothing without another one."""
        defaults = {field.name: field.default for field in msgspec.structs.fields(type(self))}
        for field, other in NEEDS.items():
            if (value := getattr(self, field)) != defaults[field] and not getattr(self, other):
                raise ConfigError(f"{field} is {value!r}, but there is no {other}; without it, it means nothing")

    def _check_edges(self) -> None:
        """Raise `ConfigError` for what is wrong about the network in front of the server."""
        for origin in self.cors_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origins has {origin!r}: an origin is *, or written as https://example.com")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ConfigError(f"trusted_proxies has {proxy!r}: {error}") from None
        if not ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError(f"root_path is {self.root_path!r}: it must be written as /embeddings, or /a/b")
        if self.otlp_endpoint and not ENDPOINT.match(self.otlp_endpoint):  # not shown: it may have a password
            raise ConfigError("otlp_endpoint must begin as http://localhost:4318 does, or with https://")
        if bool(self.tls_cert) != bool(self.tls_key):
            given, other = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(f"{given} is {getattr(self, given)!r}, but there is no {other}; give both or none")


_OF_ONE_MODEL = ("model_path", "model_name", "aliases", "models")
