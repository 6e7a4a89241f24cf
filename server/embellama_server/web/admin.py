"""Which models are served, for administrators: loaded, swapped and unloaded while the server runs.

GET /admin/models                   those that are served, with the state of their workers
PUT, DELETE /admin/models/{name} ── ModelChanges ──► a model more, another one in its place, one less

Without `models_dir` there is nothing at these paths. Whoever may ask for them is not decided here.
"""

import asyncio
from typing import Any, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama.errors import ConfigError, EmbellamaError, ModelLoadError
from embellama_server.config import MODEL_FIELDS, ServerConfig
from embellama_server.dialects.bodies import BodyParser
from embellama_server.held import HeldBytes
from embellama_server.models import ModelChanges
from embellama_server.problems import BadRequest
from embellama_server.reading import ClientGone, check_encoding, read_body
from embellama_server.state import ServedModel, ServerState
from embellama_server.web.pages import ModelDescription, PoolHealth, as_json, error_response, health, model_description

MODELS, MODEL = "/admin/models", "/admin/models/{name}"


class AdminModel(TypedDict):
    """A model that is served: its file, its description as `/v1/models` has it, and how its workers are."""

    path: str
    model: ModelDescription
    health: PoolHealth


class AdminModelList(TypedDict):
    """The models that are served, the first one first, and the name of the one that is being loaded."""

    object: Literal["list"]
    data: list[AdminModel]
    loading: str | None


class UnloadedModel(TypedDict):
    """A model that is no longer served."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


def settings_schema() -> dict[str, Any]:
    """Describe the body that loads a model, as JSON schema."""
    known = msgspec.json.schema(ServerConfig)["$defs"][ServerConfig.__name__]["properties"]
    path = {"type": "string", "description": "GGUF file to load, below models_dir."}
    fields = {name: known[name] for name in MODEL_FIELDS if name not in ("model_path", "model_name")}
    return {"type": "object", "required": ["path"], "properties": {"path": path, **fields}}


def routes(state: ServerState) -> list[Route]:
    """Return the routes of administrators; raises `ConfigError` if `models_dir` is no folder."""
    admin = _Admin(state)
    return [
        Route(MODELS, admin.models),
        Route(MODEL.replace("}", ":path}"), admin.change, methods=["PUT", "DELETE"]),
    ]


class _Admin:
    """The routes of one server's administrators: each method answers a path."""

    def __init__(self, state: ServerState):
        self._state = state
        self._changes = ModelChanges(state)
        self._settings = BodyParser(dict[str, Any])

    async def models(self, request: Request) -> Response:
        try:
            self._changes.check_allowed()
        except EmbellamaError as error:
            return error_response(request, error)
        data = [_described(model) for model in self._state.models.values()]
        return as_json({"object": "list", "data": data, "loading": self._changes.loading or None})

    async def change(self, request: Request) -> Response:
        """Load the model that the path names, or unload it."""
        name = request.path_params["name"]
        try:
            self._changes.check_allowed()
            if request.method == "DELETE":
                unloaded = self._changes.unload(name)
                return as_json({"id": unloaded.info.name, "object": "model", "deleted": True})
            return as_json(_described(await self._changes.load(name, await self._body(request))))
        except ClientGone:
            return Response()  # to nobody
        except (ConfigError, ModelLoadError) as error:  # the administrator's mistake, not the server's
            return error_response(request, BadRequest(str(error)))
        except EmbellamaError as error:
            return error_response(request, error)

    async def _body(self, request: Request) -> dict[str, Any]:
        check_encoding(request.scope)
        deadline = asyncio.get_running_loop().time() + self._state.config.timeout_ms / 1000
        with HeldBytes(self._state) as held:
            return self._settings(await read_body(self._state, request.scope, request.receive, deadline, held))


def _described(model: ServedModel) -> AdminModel:
    return {"path": model.info.path, "model": model_description(model), "health": health(model)}
