"""The description for people to read: one page of HTML, without scripts, beside the page at `/`.

openapi.description ── page ──► templates/docs.html ──► /docs
"""

import functools
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from embellama_server.dialects import DIALECTS
from embellama_server.reply import JSON
from embellama_server.state import ServerState
from embellama_server.web import html, live, openapi

Schema = dict[str, Any]


class Field(NamedTuple):
    """A field of a body: its name, and in words its type and default."""

    name: str
    type: str
    default: str


class PostSection(NamedTuple):
    """What the page says of paths that differ in their name only.

    id: The section's anchor.
    command: An example for curl.
    answer: Type of a good reply's body, in words.
    error: Type of an error's body, in words.
    """

    id: str
    paths: list[str]
    about: str
    fields: list[Field]
    command: str
    answer: str
    error: str


class Line(NamedTuple):
    """What the page says of an operation other than POST; a link if GET reads it to an end, without a parameter."""

    method: str
    path: str
    about: str
    is_link: bool


def routes(state: ServerState) -> list[Route]:
    """Return the page's route; its examples ask for the first model."""

    async def docs(_: Request) -> Response:
        config = state.config
        return HTMLResponse(page(state.model(None).info.name, config.root_path, config.page), headers=html.HEADERS)

    return [Route("/docs", docs)]


@functools.lru_cache(maxsize=4)
def page(model: str, root_path: str = "", has_page: bool = True) -> str:
    """Write the page whose examples ask for `model`, and whose links go below `root_path`, to the page there if any."""
    description = openapi.description(model, root_path)
    schemas = description["components"]["schemas"]
    dialect_paths = {path for dialect in DIALECTS for path in dialect.paths}
    same: dict[str, list[str]] = {}  # paths whose operation is the same but for its name
    lines = []
    for path, operations in description["paths"].items():
        if path in dialect_paths:
            operation = {name: value for name, value in operations["post"].items() if name != "operationId"}
            same.setdefault(str(operation), []).append(path)
        for method in ("get", "post", "put", "delete"):
            if method in operations and not (method == "post" and path in dialect_paths):
                is_link = method == "get" and "{" not in path and path != live.EVENTS  # which never ends
                lines.append(Line(method.upper(), path, operations[method]["summary"], is_link))
    posts = [_section(model, paths, description["paths"][paths[0]]["post"], schemas) for paths in same.values()]
    return html.render(
        "docs.html",
        base=f"{root_path}/",
        has_page=has_page,
        version=description["info"]["version"],
        about=description["info"]["description"],
        posts=posts,
        lines=lines,
        root_path=root_path,
        errors=sorted({**openapi.ERRORS, "431": openapi.HEAD_TOO_LARGE}.items()),
    )


def _section(model: str, paths: list[str], operation: Schema, schemas: Schema) -> PostSection:
    body = operation["requestBody"]["content"][JSON]
    example = msgspec.json.encode(body["example"]).decode()
    path = paths[0].replace("{model}", model)
    answer, error = (
        _in_words(operation["responses"][status]["content"][JSON]["schema"], schemas) for status in ("200", "400")
    )
    return PostSection(
        id=operation["operationId"],
        paths=paths,
        about=operation["summary"],
        fields=_fields(schemas[_name(body["schema"])], schemas),
        command=f"curl 127.0.0.1:8000{path} -H 'content-type: {JSON}' -d '{example}'",
        answer=answer,
        error=error,
    )


def _fields(schema: Schema, schemas: Schema) -> list[Field]:
    fields = []
    for name, about in schema["properties"].items():
        default = "required" if name in schema["required"] else msgspec.json.encode(about["default"]).decode()
        kind = _in_words(about, schemas).removesuffix(" or null")
        fields.append(Field(name, kind, "" if default == "null" else default))
    return fields


def _name(schema: Schema) -> str:
    """Return the name of the component that a schema refers to."""
    return str(schema["$ref"].rpartition("/")[2])


def _in_words(schema: Schema, schemas: Schema) -> str:
    """Say in words what a schema allows."""
    if "$ref" in schema:
        return _in_words(schemas[_name(schema)], schemas)
    if "anyOf" in schema:
        return " or ".join(_in_words(each, schemas) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    if schema.get("type") == "array":
        items = _in_words(schema.get("items", {}), schemas)
        return f"[{items}, …]"
    if "properties" in schema:
        wanted = schema.get("required", ())
        fields = (
            f"{name}{'' if name in wanted else '?'}: {_in_words(each, schemas)}"
            for name, each in schema["properties"].items()
        )
        return "{" + ", ".join(fields) + "}"
    if isinstance(schema.get("additionalProperties"), dict):
        return "{name: " + _in_words(schema["additionalProperties"], schemas) + ", …}"
    return str(schema.get("type", "anything"))
