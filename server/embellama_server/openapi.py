"""What may be asked, described by the types that requests are parsed as.

dialects.ENDPOINTS ── msgspec.json.schema_components ──► OpenAPI 3.1 ──► /openapi.json
                                                              └──► a page without scripts, /docs
"""

import functools
import html
from typing import Any

import msgspec

from embellama import __version__
from embellama_server import dialects
from embellama_server.work import JSON

_ERRORS = {
    "400": "The request is wrong: the message names the field, the value and the limit.",
    "404": "There is no such model.",
    "408": "The body was not here in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "500": "The model failed on a text.",
    "503": "More is asked than can be done, or no worker is ready; retry-after says when to come again.",
    "504": "The answer was not there in time.",
}

_PAGES = {
    "/v1/models": "The models that are served.",
    "/models": "The same.",
    "/info": "The first model, as text-embeddings-inference describes it.",
    "/api/tags": "The models that are served, as Ollama lists them.",
    "/api/version": "This server's version, as Ollama says its own.",
    "/livez": "Whether the server is alive.",
    "/readyz": "Whether every model has a worker that serves.",
    "/health": "How every model's workers are.",
    "/metrics": "Counts and times, for Prometheus.",
}


@functools.cache
def description() -> dict[str, Any]:
    """Describe every path, as OpenAPI 3.1."""
    endpoints = dialects.ENDPOINTS
    schemas, components = msgspec.json.schema_components(
        [endpoint.request for endpoint in endpoints], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for endpoint, schema in zip(endpoints, schemas, strict=True):
        answers = {status: _answer(about) for status, about in _ERRORS.items()}
        paths[endpoint.path] = {
            "post": {
                "summary": endpoint.about,
                "operationId": "post" + endpoint.path.replace("/", "_"),
                "requestBody": {"required": True, "content": {JSON: {"schema": schema}}},
                "responses": {"200": _answer("The answer.", *endpoint.answers), **answers},
            }
        }
    for path, about in _PAGES.items():
        answers = {"200": _answer(about, None)}
        if path in ("/readyz", "/health"):
            answers["503"] = _answer("It is not.", None)
        paths[path] = {"get": {"summary": about, "operationId": "get" + path.replace("/", "_"), "responses": answers}}
    paths["/v1/models/{id}"] = {
        "get": {
            "summary": "One of the models that are served, by name or alias.",
            "operationId": "get_v1_models_id",
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "responses": {"200": _answer("The model."), "404": _answer(_ERRORS["404"])},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embellama",
            "version": __version__,
            "description": "Embeddings of GGUF models, for clients of OpenAI, Cohere, Jina, Voyage, Ollama and "
            "text-embeddings-inference.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


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
