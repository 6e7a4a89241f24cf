"""The OpenAPI description of every path, made from the types that bodies are read and written as.

DIALECTS: body_type, answers, error_body ──┬── msgspec.json.schema_components ──► OpenAPI 3.1 ──► /openapi.json
the types of pages, of files and batches ──┘                                          └──► docs.py

tests/server/web/test_openapi.py holds the server to it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama import __version__
from embellama_server.dialects import DIALECTS
from embellama_server.dialects.base import Dialect
from embellama_server.jobs import records
from embellama_server.jobs import routes as jobs
from embellama_server.problems import OpenAIErrorBody
from embellama_server.reply import JSON
from embellama_server.state import ServerState
from embellama_server.telemetry.metrics import CONTENT_TYPE
from embellama_server.web import admin, bench, live, pages, projection

ERRORS = {
    "400": "The request is wrong: the message names the field, the value and the limit.",
    "401": "There is no API key, or it is not known.",
    "403": "The API key may not do this.",
    "404": "There is no such model.",
    "408": "The body was not here in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "A limit of the API key is used up.",
    "500": "The model failed on a text.",
    "503": "More is asked than can be done, or no worker is ready.",
    "504": "The answer was not there in time.",
}
CHANGE_ERRORS = {
    "400": "A setting is wrong, or the file cannot be served: the message says why.",
    "404": "There is no such model, or the server was started without `--models-dir`.",
    "409": "Another model is being loaded, or the name belongs to another model, or this is the only model.",
    "503": "The server is shutting down.",
}
KEPT_ERRORS = {
    "400": "A field, or the query, is wrong: the message names it.",
    "404": "There is no such file or batch, or the server was started without `--data-dir`.",
    "409": "It is in use, or has ended.",
    "413": "It is too large, or there is no room for it.",
    "503": "The server is shutting down, or holds too many bytes.",
}
HEAD_TOO_LARGE = "The request's head is too large."

TEXT, HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"
EVENT_STREAM = "text/event-stream; charset=utf-8"
BYTES, FORM = "application/octet-stream", "multipart/form-data"

# Paths that are read with GET: what they give, its content type and its body's type.
_PAGES: dict[str, tuple[str, str, Any]] = {
    "/": ("That the server is there; for a browser, the page.", TEXT, str),
    "/v1/models": ("The models that are served.", JSON, pages.ModelList),
    "/v1/models/{id}": ("One of the models that are served, by name or alias.", JSON, pages.ModelDescription),
    "/models": ("The same as `/v1/models`.", JSON, pages.ModelList),
    "/openai/v1/models": ("The same as `/v1/models`, where Azure has it.", JSON, pages.ModelList),
    "/openai/v1/models/{id}": ("The same as `/v1/models/{id}`, where Azure has it.", JSON, pages.ModelDescription),
    "/openai/models": ("The same as `/v1/models`, where Azure has it.", JSON, pages.ModelList),
    "/openai/models/{id}": ("The same as `/v1/models/{id}`, where Azure has it.", JSON, pages.ModelDescription),
    "/info": ("The first model, as text-embeddings-inference describes it.", JSON, dict[str, Any]),
    "/api/tags": ("The models that are served, as Ollama lists them.", JSON, dict[str, list[dict[str, Any]]]),
    "/api/ps": ("The models that are loaded, as Ollama lists them.", JSON, dict[str, list[dict[str, Any]]]),
    "/api/version": ("This server's version, as Ollama says its own.", JSON, dict[str, str]),
    "/livez": ("Whether the server is alive.", TEXT, str),
    "/readyz": ("Whether every model has a worker that serves.", TEXT, str),
    "/health": ("How the models' workers are.", JSON, pages.ServerHealth),
    live.EVENTS: ("How the server is, each second, for administrators: see docs/page.md.", EVENT_STREAM, None),
    bench.BENCH: ("What `embellama bench` found on this machine, for administrators.", JSON, bench.LastBench),
    admin.MODELS: ("The models that are served, and their workers, for administrators.", JSON, admin.AdminModelList),
    "/metrics": ("Counts and times, for Prometheus.", CONTENT_TYPE, str),
    "/openapi.json": ("This description.", JSON, dict[str, Any]),
    "/docs": ("This description, to be read.", HTML, str),
}

# Paths that give others than the first kind of answer, where `accept` likes them better.
_OTHER_TYPES = {"/": (HTML,)}

# Operations on files and batches: what they give, its content type and its body's type, and how else they answer.
_KEPT: dict[tuple[str, str], tuple[str, str, Any, str]] = {
    ("post", jobs.FILES): ("Keep a file of requests for a batch.", JSON, records.FileObject, "400 404 408 413 415 503"),
    ("get", jobs.FILES): ("The files that are kept.", JSON, records.FilePage, "400 404"),
    ("get", jobs.FILE): ("A file that is kept.", JSON, records.FileObject, "404"),
    ("delete", jobs.FILE): ("Delete a file.", JSON, records.DeletedFile, "404 409"),
    ("get", jobs.CONTENT): ("The bytes of a file.", BYTES, None, "404"),
    ("post", jobs.BATCHES): (
        "Begin with a batch: the requests of a file are computed when no others wait.",
        JSON,
        records.BatchObject,
        "400 404 408 413 415 503",
    ),
    ("get", jobs.BATCHES): ("The batches, newest first.", JSON, records.BatchPage, "400 404"),
    ("get", jobs.BATCH): ("A batch, and how far it is.", JSON, records.BatchObject, "404"),
    ("post", jobs.CANCEL): ("Cancel a batch; what is done is kept.", JSON, records.BatchObject, "404 409"),
}

_WHOLE_NUMBER, _STRING = {"type": "integer"}, {"type": "string"}
_ALLOW = {"allow": {"description": "The methods that are answered.", "required": True, "schema": _STRING}}
_RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "required": True, "schema": _WHOLE_NUMBER}}
_COMPUTED = {
    "x-request-id": {"description": "The request's own, or a new one.", "required": True, "schema": _STRING},
    "x-compute-tokens": {"description": "Tokens of the request.", "required": True, "schema": _WHOLE_NUMBER},
    "x-embellama-cached-tokens": {
        "description": "Tokens of texts whose rows were known; not in a streamed answer.",
        "schema": _WHOLE_NUMBER,
    },
    "x-embellama-prompt": {
        "description": "The prompt around the texts, if there is one: its name and version, and the SHA-256 of its "
        "content, as `query@2; sha256=…`.",
        "schema": _STRING,
    },
    "traceresponse": {"description": "The span that answered, if requests are traced.", "schema": _STRING},
    "x-embedding-shape": {"description": "Of an answer in bytes: rows, columns.", "schema": _STRING},
    "x-embedding-dtype": {"description": "Of an answer in bytes: NumPy's name.", "schema": _STRING},
}


def routes(state: ServerState) -> list[Route]:
    """Return the description's route; its examples ask for the first model."""

    async def openapi(_: Request) -> Response:
        return pages.as_json(description(state.model(None).info.name, state.config.root_path))

    return [Route("/openapi.json", openapi)]


# Of the first model, which may be another one later.
@functools.lru_cache(maxsize=4)
def description(model: str, root_path: str = "") -> dict[str, Any]:
    """Describe every path, as OpenAPI 3.1, with examples that ask for `model`; clients find the paths below a root."""
    paths: dict[str, Any] = {
        path: {"post": _post(dialect, path, model)} for dialect in DIALECTS for path in dialect.paths
    }
    for path in _PAGES:
        paths.setdefault(path, {}).update(get=_get(path), head=_head(path))
    paths[projection.PATH] = {"post": _project()}
    paths[admin.MODEL] = {"put": _load_model(), "delete": _unload_model()}
    for method, path in _KEPT:
        paths.setdefault(path, {})[method] = _kept(method, path)
        if method == "get":
            statuses = ["200", *_KEPT[method, path][3].split(), "431"]
            heads = {status: {"description": "As `GET`, without the body."} for status in statuses}
            paths[path]["head"] = _operation("head", path, "The head of what `GET` answers.", heads)
            _add_query(path, paths[path])
    for path, operations in paths.items():
        answers = {"204": {"description": "See `allow`.", "headers": _ALLOW}, "431": _error(HEAD_TOO_LARGE)}
        name = path.partition("{")[2].partition("}")[0]
        if name:
            answers["404"] = _error("There can be no such path.")
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
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": _schemas()[1]},
    }


@functools.cache
def _schemas() -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """Describe every type that is mentioned; return its schema by type, and the components that schemas refer to."""
    types: list[Any] = [
        OpenAIErrorBody,
        projection.ProjectionAnswer,
        admin.AdminModel,
        admin.UnloadedModel,
        jobs.CreateBatchBody,
    ]
    types += [kind for _, _, kind, _ in _KEPT.values() if kind is not None]
    types += [kind for _, _, kind in _PAGES.values() if kind is not None]
    for dialect in DIALECTS:
        types += [dialect.body_type, dialect.error_body, *dialect.answers.values()]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(zip(types, schemas, strict=True)), components


def _post(dialect: Dialect[Any, Any], path: str, model: str) -> dict[str, Any]:
    named = "model" in dialect.body_type.__struct_fields__
    good = {"description": "The answer.", "headers": _COMPUTED, "content": _content(dialect.answers)}
    answers = {"200": good}
    for status, about in ERRORS.items():
        if status != "404" or named:
            answers[status] = {"description": about, "content": _content({JSON: dialect.error_body})}
    answers["431"] = _error(HEAD_TOO_LARGE)
    answers["503"]["headers"] = _RETRY_AFTER
    in_path = "{model}" in path
    if in_path:  # a name that nothing can have, such as one of two lines, makes it a path that is not there
        answers["404"] = _error(ERRORS["404"])
    operation = _operation("post", path, dialect.about, answers)
    example = {**({"model": model} if named and not in_path else {}), **dialect.example}
    body = {"schema": _schemas()[0][dialect.body_type], "example": example}
    operation["requestBody"] = {"required": True, "content": {JSON: body}}
    return operation


def _get(path: str) -> dict[str, Any]:
    about, content_type, kind = _PAGES[path]
    content = _content(dict.fromkeys((content_type, *_OTHER_TYPES.get(path, ())), kind))
    answers = {"200": {"description": about, "content": content}, "431": _error(HEAD_TOO_LARGE)}
    if path in _NOT_WELL:
        answers["503"] = {"description": "It is not.", "content": content}
    if path in _MAY_BE_MISSING:
        answers["404"] = _error(CHANGE_ERRORS["404"] if path == admin.MODELS else ERRORS["404"])
    if path == live.EVENTS:
        answers |= {"404": _error("There is no page, with `--no-page`."), "503": _error("Too many look already.")}
        answers["503"]["headers"] = _RETRY_AFTER
    return _operation("get", path, about, answers)


def _load_model() -> dict[str, Any]:
    about = "Load a model and serve it, in the place of the one of its name if there is one; for administrators."
    errors = {status: ERRORS[status] for status in ("408", "413", "415")} | CHANGE_ERRORS
    answers = _changed(admin.AdminModel, errors)
    operation = _operation("put", admin.MODEL, about, answers)
    operation["requestBody"] = {"required": True, "content": {JSON: {"schema": admin.settings_schema()}}}
    return operation


def _unload_model() -> dict[str, Any]:
    about = "Stop serving a model, once its requests are answered; for administrators."
    return _operation("delete", admin.MODEL, about, _changed(admin.UnloadedModel, CHANGE_ERRORS))


def _project() -> dict[str, Any]:
    about = "Points in a plane for vectors: the body and the two headers of an answer of `/v1/embeddings` in bytes."
    wrong = ("400", "408", "413", "415", "503", "504")
    answers = _changed(projection.ProjectionAnswer, {status: ERRORS[status] for status in wrong})
    operation = _operation("post", projection.PATH, about, answers)
    operation["requestBody"] = {"required": True, "content": {BYTES: {"schema": {**_STRING, "format": "binary"}}}}
    schemas = {projection.SHAPE: _STRING, projection.DTYPE: {"enum": [*projection.DTYPES]}}
    operation["parameters"] = [
        {"name": name, "in": "header", "required": True, "schema": schema} for name, schema in schemas.items()
    ]
    return operation


def _kept(method: str, path: str) -> dict[str, Any]:
    """Describe an operation on files or batches."""
    about, content_type, kind, errors = _KEPT[method, path]
    answers = {
        "200": {"description": about, "content": _content({content_type: kind})},
        "431": _error(HEAD_TOO_LARGE),
        **{status: _error(KEPT_ERRORS.get(status) or ERRORS[status]) for status in errors.split()},
    }
    if "503" in answers:
        answers["503"]["headers"] = _RETRY_AFTER
    operation = _operation(method, path, about, answers)
    if (method, path) == ("post", jobs.FILES):
        fields = {
            "purpose": {"const": "batch"},
            "file": {**_STRING, "format": "binary"},
            "expires_after[seconds]": {**_WHOLE_NUMBER, "minimum": 3600, "maximum": 2592000},
            "expires_after[anchor]": {"const": "created_at"},
        }
        form = {"type": "object", "required": ["purpose", "file"], "properties": fields}
        operation["requestBody"] = {"required": True, "content": {FORM: {"schema": form}}}
    if (method, path) == ("post", jobs.BATCHES):
        schema = _schemas()[0][jobs.CreateBatchBody]
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _add_query(path: str, operations: dict[str, Any]) -> None:
    """Describe the query of a list of files or batches."""
    if path not in (jobs.FILES, jobs.BATCHES):
        return
    most = jobs.MOST_FILES if path == jobs.FILES else jobs.MOST_BATCHES
    fields: dict[str, Any] = {"after": _STRING, "limit": {**_WHOLE_NUMBER, "minimum": 1, "maximum": most}}
    if path == jobs.FILES:
        fields |= {"order": {"enum": ["asc", "desc"]}, "purpose": _STRING}
    for method in ("get", "head"):
        operations[method]["parameters"] = [{"name": name, "in": "query", "schema": fields[name]} for name in fields]


def _changed(kind: Any, errors: Mapping[str, str]) -> dict[str, Any]:
    answers = {"200": {"description": "The answer.", "content": _content({JSON: kind})}, "431": _error(HEAD_TOO_LARGE)}
    answers |= {status: _error(about) for status, about in errors.items()}
    answers["503"]["headers"] = _RETRY_AFTER
    return answers


def _head(path: str) -> dict[str, Any]:
    answers = {status: {"description": "As `GET`, without the body."} for status in _get(path)["responses"]}
    return _operation("head", path, "The head of what `GET` answers.", answers)


_NOT_WELL = ("/readyz", "/health")
_MAY_BE_MISSING = (admin.MODELS, *(path for path in _PAGES if "{" in path))


def _operation(method: str, path: str, about: str, answers: dict[str, Any]) -> dict[str, Any]:
    name = method + path.translate(str.maketrans("/.", "__", "{}"))
    return {"summary": about, "operationId": name, "responses": dict(sorted(answers.items()))}


def _error(about: str) -> dict[str, Any]:
    """Describe an error that belongs to no dialect."""
    return {"description": about, "content": _content({JSON: OpenAIErrorBody})}


def _content(types: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {} if kind is None else {"schema": _schemas()[0][kind]} for name, kind in types.items()}
