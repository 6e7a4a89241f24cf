"""Ollama's lists of models, in its words; `dialects/ollama.py` has the paths that give a model work.

ServerState ──► GET /api/tags, /api/ps, /api/version
"""

import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama import __version__
from embellama_server.dialects.ollama import model_details
from embellama_server.names import with_tag
from embellama_server.state import ServedModel, ServerState
from embellama_server.web.pages import allowed_models, as_json

# When a model that stays loaded is said to be unloaded: Ollama's own answer to a negative `keep_alive`.
NEVER = "2318-01-01T00:00:00Z"


def routes(state: ServerState) -> list[Route]:
    """Return the routes of Ollama's lists."""

    async def tags(request: Request) -> Response:
        models = state.models_allowed(allowed_models(request))
        return as_json({"models": [_listed(model) for model in models.values()]})

    async def ps(request: Request) -> Response:
        models = state.models_allowed(allowed_models(request))
        return as_json({"models": [_loaded(model) for model in models.values()]})

    async def version(_: Request) -> Response:
        return as_json({"version": __version__})

    return [Route("/api/tags", tags), Route("/api/ps", ps), Route("/api/version", version)]


def _listed(model: ServedModel) -> dict[str, Any]:
    """Describe a model that can be asked."""
    return {
        "name": with_tag(model.info.name),
        "model": with_tag(model.info.name),
        "modified_at": datetime.datetime.fromtimestamp(model.created, datetime.UTC).isoformat(),
        "size": model.info.n_bytes,
        "digest": model.digest,
        "details": model_details(model.info),
    }


def _loaded(model: ServedModel) -> dict[str, Any]:
    """Describe a model that is in memory, as all are here."""
    listed = _listed(model)
    del listed["modified_at"]
    return {**listed, "expires_at": NEVER, "size_vram": 0, "context_length": model.info.n_ctx}
