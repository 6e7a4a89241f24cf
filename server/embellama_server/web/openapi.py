"""What may be asked and what comes back, described by the types themselves.

dialects.ENDPOINTS ── request, answers ─┐
                   └─ refuse's return ──┼─ msgspec.json.schema_components ──► OpenAPI 3.1 ──► /openapi.json
pages' types ───────────────────────────┘                                         └──► a page without scripts, /docs

tests/test_openapi.py holds the server to it.
"""

import functools
import html
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from embellama import __version__
from embellama_server import api, dialects
from embellama_server.telemetry.metrics import CONTENT_TYPE
from embellama_server.web import pages
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


def routes(model: str) -> list[Route]:
    """Return the routes of the description, whose examples ask for `model`."""

    async def openapi(_: Request) -> Response:
        return pages.as_json(description(model))

    async def docs(_: Request) -> Response:
        return HTMLResponse(page(description(model)))

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


@functools.cache
def description(model: str) -> dict[str, Any]:
    """Describe every path, as OpenAPI 3.1, with examples that ask for `model`."""
    paths: dict[str, Any] = {endpoint.path: {"post": _post(endpoint, model)} for endpoint in dialects.ENDPOINTS}
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


def _post(endpoint: Endpoint, model: str) -> dict[str, Any]:
    named = "model" in endpoint.request.__struct_fields__
    good = {"description": "The answer.", "headers": _COMPUTED, "content": _content(endpoint.answers)}
    answers = {"200": good}
    for status, about in _ERRORS.items():
        if status != "404" or named:
            answers[status] = {"description": about, "content": _content({JSON: _refusal_of(endpoint)})}
    answers["431"] = _refusal(_HEAD_TOO_LARGE)
    answers["503"]["headers"] = _RETRY_AFTER
    operation = _operation("post", endpoint.path, endpoint.about, answers)
    example = {**({"model": model} if named else {}), **endpoint.example}
    body = {"schema": _schemas()[0][endpoint.request], "example": example}
    operation["requestBody"] = {"required": True, "content": {JSON: body}}
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


def page(description: dict[str, Any]) -> str:
    """Write a description as HTML, with nothing to fetch from elsewhere."""
    schemas = description["components"]["schemas"]
    posts: dict[str, list[str]] = {}  # paths that are the same but for their name come together
    gets = []
    for path, operations in description["paths"].items():
        if "post" in operations:
            same = {name: value for name, value in operations["post"].items() if name != "operationId"}
            posts.setdefault(str(same), []).append(path)
        else:
            link = html.escape(path) if "{" in path else f"<a href='{path}'>{path}</a>"
            gets.append((f"GET <code>{link}</code>", _prose(operations["get"]["summary"])))
    parts, contents = [], []
    for first, *others in posts.values():
        operation = description["paths"][first]["post"]
        about = _prose(operation["summary"])
        names = ", ".join(f"<code>{path}</code>" for path in (first, *others))
        contents.append((f"POST <a href='#{operation['operationId']}'>{names}</a>", about))
        parts.append(f"<h2 id='{operation['operationId']}'>POST {names}</h2>\n<p>{about}</p>")
        parts.append(_operation_in_full(first, operation, schemas))
    errors = [(status, html.escape(about)) for status, about in {**_ERRORS, "431": _HEAD_TOO_LARGE}.items()]
    return _PAGE.format(
        version=html.escape(description["info"]["version"]),
        about=html.escape(description["info"]["description"]),
        contents=_table(*contents, *gets),
        operations="\n".join(parts),
        errors=_table(("status", "when"), *sorted(errors), headed=True),
    )


def _operation_in_full(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation["requestBody"]["content"][JSON]
    schema = schemas[body["schema"]["$ref"].rpartition("/")[2]]
    fields = [("field", "type", "default")]
    for name, about in schema["properties"].items():
        default = "required" if name in schema["required"] else msgspec.json.encode(about["default"]).decode()
        default = "" if default == "null" else html.escape(default)
        fields.append((f"<code>{name}</code>", html.escape(_kind(about, schemas).removesuffix(" or null")), default))
    command = (
        f"curl 127.0.0.1:8000{path} -H 'content-type: {JSON}' -d '{msgspec.json.encode(body['example']).decode()}'"
    )
    answer, error = (
        html.escape(_kind(operation["responses"][status]["content"][JSON]["schema"], schemas))
        for status in ("200", "400")
    )
    return (
        f"{_table(*fields, headed=True)}\n<pre>{html.escape(command)}</pre>\n"
        f"<p>Answer: <code>{answer}</code></p>\n<p>Error: <code>{error}</code></p>"
    )


def _table(*rows: tuple[str, ...], headed: bool = False) -> str:
    """Write a table of HTML, the first row being its head if `headed`."""
    written = []
    for i, row in enumerate(rows):
        cell = "th" if headed and not i else "td"
        written.append("<tr>" + "".join(f"<{cell}>{value}</{cell}>" for value in row) + "</tr>")
    return "<table>\n" + "\n".join(written) + "\n</table>"


def _prose(text: str) -> str:
    return re.sub("`(.*?)`", r"<code>\1</code>", html.escape(text))


def _kind(about: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Say in words what a schema allows."""
    if "$ref" in about:
        return _kind(schemas[about["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in about:
        return " or ".join(_kind(each, schemas) for each in about["anyOf"])
    if "enum" in about:
        return " or ".join(msgspec.json.encode(value).decode() for value in about["enum"])
    if about.get("type") == "array":
        items = _kind(about.get("items", {}), schemas)
        return f"[{items}, …]"
    if "properties" in about:
        wanted = about.get("required", ())
        fields = (
            f"{name}{'' if name in wanted else '?'}: {_kind(each, schemas)}"
            for name, each in about["properties"].items()
        )
        return "{" + ", ".join(fields) + "}"
    if isinstance(about.get("additionalProperties"), dict):
        return "{name: " + _kind(about["additionalProperties"], schemas) + ", …}"
    return str(about.get("type", "anything"))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>embellama</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ font-size: 1.2rem; margin-top: 2rem; border-top: 1px solid #ccc; padding-top: 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .1rem 1.5rem .1rem 0; vertical-align: top; }}
pre {{ background: #f4f4f4; padding: .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
code {{ overflow-wrap: anywhere; }}
</style>
<h1>embellama {version}</h1>
<p>{about} The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>
{contents}
{operations}
<h2>Errors</h2>
<p>The body of an error is what its path says. An unknown path, a method that a path does not answer, a head that is too
large and what is no HTTP are answered as <code>/v1/embeddings</code> does.</p>
{errors}
</html>
"""
