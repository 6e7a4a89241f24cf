"""What is answered without a model computing anything: lists, health, metrics.

Server ──► GET /v1/models, /info, /api/tags ……   what is served, in each dialect's words
       ──► GET /livez, /readyz, /health          alive; ready; a picture
       ──► GET /metrics                          for Prometheus
"""

import datetime
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama import __version__
from embellama.backend import PoolStatus
from embellama_server import api
from embellama_server.telemetry import metrics
from embellama_server.work import JSON

if TYPE_CHECKING:
    from embellama_server.app import Model, Server


class Described(TypedDict):
    """A model as OpenAI describes one, and what it does not say."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    architecture: str
    dimensions: int
    max_input_tokens: int
    pooling: str
    normalization: str
    quantization: str
    bytes: int
    prompts: list[str]
    max_batch_tokens: int
    workers: int


class Models(TypedDict):
    """The models that are served."""

    object: Literal["list"]
    data: list[Described]


class Workers(TypedDict):
    """How many workers there are, and were started again."""

    ready: int
    total: int
    restarts: int


class Waiting(TypedDict):
    """What waits for a worker."""

    requests: int
    tokens: int


class Pool(TypedDict):
    """How a model's workers are, and what is wrong."""

    status: PoolStatus
    workers: Workers
    waiting: Waiting
    reason: NotRequired[str]


class Health(TypedDict):
    """The worst of the models' states; one model's pool, or that of each."""

    status: PoolStatus
    workers: NotRequired[Workers]
    waiting: NotRequired[Waiting]
    reason: NotRequired[str]
    models: NotRequired[dict[str, Pool]]


def routes(server: "Server") -> list[Route]:
    """Return the routes of `server`."""
    pages = _Pages(server)
    return [
        Route("/v1/models", pages.models),
        Route("/v1/models/{id:path}", pages.model),
        Route("/models", pages.models),
        Route("/info", pages.info),
        Route("/api/tags", pages.tags),
        Route("/api/version", pages.version),
        Route("/livez", pages.livez),
        Route("/readyz", pages.readyz),
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
    ]


def refusal(error: Exception, headers: dict[str, str] | None = None) -> Response:
    """Make the answer to a request that went to no dialect."""
    problem, more = api.problem(error)
    return as_json(api.refuse(problem), problem.status, {**more, **(headers or {})})


class _Pages:
    def __init__(self, server: "Server"):
        self._server = server

    async def models(self, _: Request) -> Response:
        return as_json({"object": "list", "data": [_described(model) for model in self._server.models.values()]})

    async def model(self, request: Request) -> Response:
        try:
            return as_json(_described(self._server.model(request.path_params["id"])))
        except Exception as error:
            return refusal(error)

    async def info(self, _: Request) -> Response:
        """As text-embeddings-inference describes itself, and the first model."""
        model = self._server.model(None)
        config, info = self._server.config, model.info
        kind: dict[str, Any] = {"embedding": {"pooling": info.pooling}}
        if info.pooling == "rank":
            kind = {"reranker": {"id2label": {}, "label2id": {}}}
        return as_json(
            {
                "model_id": info.name,
                "model_sha": None,
                "model_dtype": info.quantization,
                "model_type": kind,
                "max_concurrent_requests": model.config.queue_size,
                "max_input_length": info.n_ctx,
                "max_batch_tokens": model.config.max_batch_tokens,
                "max_batch_requests": model.config.max_batch_size,
                "max_client_batch_size": api.MAX_INPUTS,
                "auto_truncate": False,
                "tokenization_workers": 1,
                "version": __version__,
                "max_request_tokens": config.max_request_tokens,
            }
        )

    async def tags(self, _: Request) -> Response:
        """As Ollama lists its models."""
        return as_json({"models": [_tag(model) for model in self._server.models.values()]})

    async def version(self, _: Request) -> Response:
        return as_json({"version": __version__})

    async def livez(self, _: Request) -> Response:
        return Response("ok", media_type="text/plain")

    async def readyz(self, _: Request) -> Response:
        """Ready: every model has a worker that reproduced its canary, and the server is not stopping."""
        missing = [name for name, model in self._server.models.items() if not model.dispatcher.n_ready]
        if self._server.stopping:
            return Response("stopping", 503, media_type="text/plain")
        if missing:
            return Response(f"no worker is ready for {', '.join(missing)}", 503, media_type="text/plain")
        return Response("ok", media_type="text/plain")

    async def health(self, _: Request) -> Response:
        pools = {name: _health(model) for name, model in self._server.models.items()}
        # The worst of them speaks for all.
        status = max((pool["status"] for pool in pools.values()), key=_WORSE.index)
        first = next(iter(pools.values()))
        body: dict[str, Any] = {**first, "status": status}
        if len(pools) > 1:
            body = {"status": status, "models": pools}
        return as_json(body, 200 if status in ("ok", "degraded") else 503)

    async def metrics(self, _: Request) -> Response:
        return Response(self._server.metrics.page(), headers={"content-type": metrics.CONTENT_TYPE})


_WORSE = ("ok", "degraded", "starting", "unavailable")


def _described(model: "Model") -> Described:
    """Describe a model as OpenAI does, and what it does not say."""
    info, config = model.info, model.config
    return {
        "id": info.name,
        "object": "model",
        "created": model.created,
        "owned_by": "embellama",
        "aliases": list(config.aliases),
        "architecture": info.architecture,
        "dimensions": info.dim,
        "max_input_tokens": info.n_ctx,
        "pooling": info.pooling,
        "normalization": info.normalization,
        "quantization": info.quantization,
        "bytes": info.n_bytes,
        "prompts": info.prompts,
        "max_batch_tokens": config.max_batch_tokens,
        "workers": config.num_workers,
    }


def _tag(model: "Model") -> dict[str, Any]:
    info = model.info
    modified = datetime.datetime.fromtimestamp(model.created, datetime.UTC).isoformat()
    return {
        "name": f"{info.name}:latest",
        "model": f"{info.name}:latest",
        "modified_at": modified,
        "size": info.n_bytes,
        "digest": "",
        "details": {
            "format": "gguf",
            "family": info.architecture,
            "families": [info.architecture],
            "parameter_size": "",
            "quantization_level": info.quantization.upper(),
        },
    }


def _health(model: "Model") -> Pool:
    pool = model.dispatcher.state
    body: Pool = {
        "status": pool.status,
        "workers": {"ready": pool.n_ready, "total": pool.n_workers, "restarts": pool.n_restarts},
        "waiting": {"requests": pool.n_waiting, "tokens": pool.waiting_tokens},
    }
    if pool.trouble:
        body["reason"] = pool.trouble
    return body


def as_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make an answer of JSON."""
    return Response(api.dumps(body), status, headers, JSON)
