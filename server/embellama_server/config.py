"""How the server runs: the library's settings and its own."""

from typing import Annotated, Literal

from msgspec import Meta

from embellama.config import EngineConfig


class ServerConfig(EngineConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server runs. Each field is a flag and an `EMBELLAMA_*` variable (`embellama.options`)."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    num_workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Worker processes, each with the model; 0 takes one for each core, at most 8.",
            extra={"flag": "workers"},
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
