"""What may be asked and what comes back, described by the types themselves.

dialects.ENDPOINTS ── request, answers ─┐
                   └─ refuse's return ──┼─ msgspec.json.schema_components ──► OpenAPI 3.1 ──► /openapi.json
pages' types ───────────────────────────┘                                         └──► a page without scripts, /docs

tests/test_openapi.py holds the server to it.
"""

import functools
import html
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from embellama import __version__
from embellama_server import api, dialects, pages
from embellama_server.metrics import CONTENT_TYPE
from embellama_server.work import JSON, Endpoint

_ERRORS = {
    "400": "The request is wrong: the message names the field, the value and the limit.",
    "404": "There is no such model.",
    "408": "The body was not here in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "500": "The model failed on a text.",
    "503": "More is asked than can be done, or no worker is ready.",
    "504": "The answer was not there in time.",
}
_HEAD_TOO_LARGE = "The request's head is too large."

TEXT, HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"

# What can be read without asking for work: what it is, its content type and its body's type.
_PAGES: dict[str, tuple[str, str, Any]] = {
    "/v1/models": ("The models that are served.", JSON, pages.Models),
    "/v1/models/{id}": ("One of the models that are served, by name or alias.", JSON, pages.Described),
    "/models": ("The same as `/v1/models`.", JSON, pages.Models),
    "/info": ("The first model, as text-embeddings-inference describes it.", JSON, dict[str, Any]),
    "/api/tags": ("The models that are served, as Ollama lists them.", JSON, dict[str, list[dict[str, Any]]]),
    "/api/version": ("This server's version, as Ollama says its own.", JSON, dict[str, str]),
    "/livez": ("Whether the server is alive.", TEXT, str),
    "/readyz": ("Whether every model has a worker that serves.", TEXT, str),
    "/health": ("How the models' workers are.", JSON, pages.Health),
    "/metrics": ("Counts and times, for Prometheus.", CONTENT_TYPE, str),
    "/openapi.json": ("This description.", JSON, dict[str, Any]),
    "/docs": ("This description, to be read.", HTML, str),
}

_WHOLE_NUMBER, _STRING = {"type": "integer"}, {"type": "string"}
_ALLOW = {"allow": {"description": "The methods that are answered.", "required": True, "schema": _STRING}}
_RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "required": True, "schema": _WHOLE_NUMBER}}
_COMPUTED = {
    "x-request-id": {"description": "The request's own, or a new one.", "required": True, "schema": _STRING},
    "x-compute-tokens": {"description": "Tokens of the request.", "required": True, "schema": _WHOLE_NUMBER},
    "x-embedding-shape": {"description": "Of an answer in bytes: rows, columns.", "schema": _STRING},
    "x-embedding-dtype": {"description": "Of an answer in bytes: NumPy's name.", "schema": _STRING},
}


def routes() -> list[Route]:
    """Return the routes of the description."""
    return [Route("/openapi.json", _description), Route("/docs", _page)]


async def _description(_: Request) -> Response:
    return pages.as_json(description())


async def _page(_: Request) -> Response:
    return HTMLResponse(page())


@functools.cache
def description() -> dict[str, Any]:
    """Describe every path, as OpenAPI 3.1."""
    paths: dict[str, Any] = {endpoint.path: {"post": _post(endpoint)} for endpoint in dialects.ENDPOINTS}
    for path in _PAGES:
        paths[path] = {"get": _get(path), "head": _head(path)}
    for path, operations in paths.items():
        answers = {"204": {"description": "See `allow`.", "headers": _ALLOW}, "431": _refusal(_HEAD_TOO_LARGE)}
        name = path.partition("{")[2].partition("}")[0]
        if name:
            answers["404"] = _refusal("There can be no such path.")
        operations["options"] = _operation("options", path, "Which methods the path answers.", answers)
        for operation in operations.values() if name else ():
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _STRING}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embellama",
            "version": __version__,
            "description": "Embeddings of GGUF models, for clients of OpenAI, Cohere, Jina, Voyage, Ollama and "
            "text-embeddings-inference.",
        },
        "paths": paths,
        "components": {"schemas": _schemas()[1]},
    }


@functools.cache
def _schemas() -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """Describe every type that is mentioned; return its schema by type, and the components that schemas refer to."""
    types: list[Any] = [api.Refusal, *(kind for _, _, kind in _PAGES.values())]
    for endpoint in dialects.ENDPOINTS:
        types += [endpoint.request, _refusal_of(endpoint), *endpoint.answers.values()]
    found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    # Types of the same name are told apart by their module; a dialect's name is enough.
    text = msgspec.json.encode(found).replace(b"embellama_server.dialects.", b"").replace(b"embellama_server.", b"")
    schemas, components = msgspec.json.decode(text)
    return dict(zip(types, schemas, strict=True)), components


def _refusal_of(endpoint: Endpoint) -> Any:
    return get_type_hints(endpoint.refuse)["return"]


def _post(endpoint: Endpoint) -> dict[str, Any]:
    good = {"description": "The answer.", "headers": _COMPUTED, "content": _content(endpoint.answers)}
    answers = {"200": good}
    for status, about in _ERRORS.items():
        if status != "404" or "model" in endpoint.request.__struct_fields__:
            answers[status] = {"description": about, "content": _content({JSON: _refusal_of(endpoint)})}
    answers["431"] = _refusal(_HEAD_TOO_LARGE)
    answers["503"]["headers"] = _RETRY_AFTER
    operation = _operation("post", endpoint.path, endpoint.about, answers)
    operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _schemas()[0][endpoint.request]}}}
    return operation


def _get(path: str) -> dict[str, Any]:
    about, content_type, kind = _PAGES[path]
    content = _content({content_type: kind})
    answers = {"200": {"description": about, "content": content}, "431": _refusal(_HEAD_TOO_LARGE)}
    if path in _NOT_WELL:
        answers["503"] = {"description": "It is not.", "content": content}
    if "{" in path:
        answers["404"] = _refusal(_ERRORS["404"])
    return _operation("get", path, about, answers)


def _head(path: str) -> dict[str, Any]:
    statuses = ["200", *(["503"] if path in _NOT_WELL else []), *(["404"] if "{" in path else []), "431"]
    answers = {status: {"description": "As `GET`, without the body."} for status in statuses}
    return _operation("head", path, "The head of what `GET` answers.", answers)


_NOT_WELL = ("/readyz", "/health")


def _operation(method: str, path: str, about: str, answers: dict[str, Any]) -> dict[str, Any]:
    name = method + path.translate(str.maketrans("/.", "__", "{}"))
    return {"summary": about, "operationId": name, "responses": dict(sorted(answers.items()))}


def _refusal(about: str) -> dict[str, Any]:
    """Describe an error that belongs to no dialect."""
    return {"description": about, "content": _content({JSON: api.Refusal})}


def _content(types: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {} if kind is None else {"schema": _schemas()[0][kind]} for name, kind in types.items()}


@functools.cache
def page() -> str:
    """Write the description as HTML, with nothing to fetch from elsewhere."""
    about = description()
    parts = [f"<h1>embellama {html.escape(__version__)}</h1>", f"<p>{html.escape(about['info']['description'])}</p>"]
    for path, methods in about["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<h2 id='{operation['operationId']}'><b>{method.upper()}</b> <code>{html.escape(path)}</code></h2>"
            )
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                name = operation["requestBody"]["content"][JSON]["schema"]["$ref"].rpartition("/")[2]
                parts.append(_table(about["components"]["schemas"][name]))
    return _PAGE.replace("BODY", "\n".join(parts))


def _answer(about: str, *types: str | None) -> dict[str, Any]:
    """Describe an answer, of JSON unless told otherwise; None for one of any type."""
    if None in types:
        return {"description": about}
    return {"description": about, "content": {kind: {"schema": {}} for kind in types or (JSON,)}}


def _table(schema: dict[str, Any]) -> str:
    rows = []
    for field, about in schema["properties"].items():
        wanted = "required" if field in schema.get("required", ()) else _default(about)
        kind = html.escape(_kind(about))
        rows.append(f"<tr><td><code>{html.escape(field)}</code></td><td>{kind}</td><td>{html.escape(wanted)}</td></tr>")
    return "<table><tr><th>field</th><th>type</th><th>default</th></tr>" + "".join(rows) + "</table>"


def _default(about: dict[str, Any]) -> str:
    return str(msgspec.json.encode(about["default"]), "utf-8") if "default" in about else ""


def _kind(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(_kind(each) for each in about["anyOf"] if each.get("type") != "null")
    if "enum" in about:
        return " or ".join(repr(value) for value in about["enum"] if value is not None)
    if "$ref" in about:
        return str(about["$ref"].rpartition("/")[2])
    if about.get("type") == "array":
        return f"list of {_kind(about.get('items', {}))}"
    return str(about.get("type", "any"))


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>embellama</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; border-top: 1px solid #ddd; padding-top: 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .1rem 1.5rem .1rem 0; vertical-align: top; }
</style>
<body>
BODY
<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>
</body></html>
"""
