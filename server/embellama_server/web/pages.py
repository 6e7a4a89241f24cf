"""Pages that need no model to compute anything: lists, health, metrics.

ServerState ──► GET /v1/models, /info ……              what is served, in each dialect's words
            ──► GET /livez, /readyz, /health          alive; ready; how the workers are
            ──► GET /metrics                          for Prometheus
"""

from collections.abc import Collection
from typing import Any, Literal, NotRequired, TypedDict

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama import __version__
from embellama.backend import LayerState, PoolStatus
from embellama_server.dialects import error_outside
from embellama_server.dialects.bodies import MAX_INPUTS
from embellama_server.problems import MethodNotAllowed, NotFound, problem_of
from embellama_server.reply import JSON, dumps
from embellama_server.state import ALLOWED_MODELS, ServedModel, ServerState
from embellama_server.telemetry import metrics

# Where models are listed: OpenAI's path, without its version, Azure's two.
MODEL_LISTS = ("/v1/models", "/models", "/openai/v1/models", "/openai/models")
# Where a step before the app says, in a request's scope, whether `/health` tells more than its status.
HEALTH_DETAILS = "embellama.health_details"


class ModelDescription(TypedDict):
    """A model as OpenAI describes one, with more fields of our own."""

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
    compute: str
    bytes: int
    weights_sha256: str
    prompts: list[str]
    max_batch_tokens: int
    workers: int


class ModelList(TypedDict):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelDescription]


class WorkerCounts(TypedDict):
    """How many workers there are, and were started again."""

    ready: int
    total: int
    restarts: int


class WaitingCounts(TypedDict):
    """How much waits for a worker."""

    requests: int
    tokens: int


class LayerCounts(TypedDict):
    """What a layer of the cache of rows did, and why it does nothing now, if so."""

    hits: int
    misses: int
    bytes: int | None
    evictions: int
    reason: NotRequired[str]


class PoolHealth(TypedDict):
    """How a model's workers are, what its cache did, and what is wrong."""

    status: PoolStatus
    workers: WorkerCounts
    waiting: WaitingCounts
    cache: NotRequired[dict[str, LayerCounts]]
    reason: NotRequired[str]


class ServerHealth(TypedDict):
    """The worst state of any model; how the workers are, of the only model or of each."""

    status: PoolStatus
    workers: NotRequired[WorkerCounts]
    waiting: NotRequired[WaitingCounts]
    cache: NotRequired[dict[str, LayerCounts]]
    reason: NotRequired[str]
    models: NotRequired[dict[str, PoolHealth]]


def routes(state: ServerState) -> list[Route]:
    """Return the pages' routes."""
    pages = _Pages(state)
    return [
        *(Route(path, pages.models) for path in MODEL_LISTS),
        *(Route(f"{path}/{{id:path}}", pages.model) for path in MODEL_LISTS if path != "/models"),
        Route("/info", pages.info),
        Route("/livez", pages.livez),
        Route("/readyz", pages.readyz),
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
    ]


def allowed_models(request: Request) -> Collection[str]:
    """Return the names of the only models that a request may be told of; none for all."""
    names: Collection[str] = request.scope.get(ALLOWED_MODELS, ())
    return names


def error_response(request: Request, error: Exception, headers: dict[str, str] | None = None) -> Response:
    """Make the response that tells of an error, for a request that went to no dialect."""
    problem, more = problem_of(error)
    body = error_outside(request.url.path)(problem)
    return as_json(body, problem.status, {**more, **(headers or {})})


def http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    kind = MethodNotAllowed if error.status_code == 405 else NotFound
    told = kind(f"{request.method} {request.url.path}: {error.detail}")
    return error_response(request, told, headers)


def unexpected_error(request: Request, error: Exception) -> Response:
    """Answer a request that our own mistake spoilt."""
    return error_response(request, error)


class _Pages:
    """The pages of one server: each method answers a path."""

    def __init__(self, state: ServerState):
        self._state = state

    async def models(self, request: Request) -> Response:
        models = self._state.models_allowed(allowed_models(request))
        return as_json({"object": "list", "data": [model_description(model) for model in models.values()]})

    async def model(self, request: Request) -> Response:
        try:
            return as_json(model_description(self._state.model(request.path_params["id"], allowed_models(request))))
        except Exception as error:
            return error_response(request, error)

    async def info(self, request: Request) -> Response:
        """Describe the server and its first model as text-embeddings-inference does."""
        try:
            model = self._state.model(None, allowed_models(request))
        except Exception as error:
            return error_response(request, error)
        config, info = self._state.config, model.info
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
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": False,
                "tokenization_workers": 1,
                "version": __version__,
                "max_request_tokens": config.max_request_tokens,
            }
        )

    async def livez(self, _: Request) -> Response:
        return Response("ok", media_type="text/plain")

    async def readyz(self, _: Request) -> Response:
        """Tell whether every model has a worker that reproduced its canary, and the server is not stopping."""
        if unready := self._state.unready:
            return Response(unready, 503, media_type="text/plain")
        return Response("ok", media_type="text/plain")

    async def health(self, request: Request) -> Response:
        models = {name: health(model) for name, model in self._state.models.items()}
        # The worst of them speaks for all.
        status = max((each["status"] for each in models.values()), key=_WORSE.index)
        first = next(iter(models.values()))
        body: dict[str, Any] = {**first, "status": status}
        if len(models) > 1:
            body = {"status": status, "models": models}
        if not request.scope.get(HEALTH_DETAILS, True):
            body = {"status": status}
        return as_json(body, 200 if status in ("ok", "degraded") else 503)

    async def metrics(self, _: Request) -> Response:
        return Response(self._state.metrics.page(), headers={"content-type": metrics.CONTENT_TYPE})


_WORSE = ("ok", "degraded", "starting", "unavailable")


def model_description(model: ServedModel) -> ModelDescription:
    """Describe a model as OpenAI does, and more."""
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
        "compute": info.compute,
        "bytes": info.n_bytes,
        "weights_sha256": model.weights_sha256,
        "prompts": info.prompts,
        "max_batch_tokens": config.max_batch_tokens,
        "workers": config.num_workers,
    }


def health(model: ServedModel) -> PoolHealth:
    """Tell how a model's workers are."""
    pool = model.backend.state
    body: PoolHealth = {
        "status": pool.status,
        "workers": {"ready": pool.n_ready, "total": pool.n_workers, "restarts": pool.n_restarts},
        "waiting": {"requests": pool.n_waiting, "tokens": pool.waiting_tokens},
    }
    if pool.cache:
        body["cache"] = {layer.name: _counts(layer) for layer in pool.cache}
    if pool.trouble:
        body["reason"] = pool.trouble
    return body


def _counts(layer: LayerState) -> LayerCounts:
    counts: LayerCounts = {
        "hits": layer.n_hits,
        "misses": layer.n_misses,
        "bytes": layer.n_bytes,
        "evictions": layer.n_evicted,
    }
    if layer.trouble:
        counts["reason"] = layer.trouble
    return counts


def as_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make a response of JSON."""
    return Response(dumps(body), status, headers, JSON)
