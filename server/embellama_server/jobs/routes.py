"""The paths of Files and Batches, in OpenAI's words.

POST /v1/files ── Upload ──► BatchService.add_file        POST /v1/batches ──► BatchService.create
GET, DELETE /v1/files … ──► FileRecord.told, its bytes    GET /v1/batches …, POST …/cancel ──► BatchRecord.told

With keys, each sees only what is its own. Without `data_dir` there is nothing at these paths.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from embellama.backend import ANYONE
from embellama.errors import EmbellamaError
from embellama_server.dialects.bodies import BodyParser
from embellama_server.exchange import CALLER
from embellama_server.held import HeldBytes
from embellama_server.jobs.folder import new_id
from embellama_server.jobs.records import BatchRecord, FileRecord
from embellama_server.jobs.service import KEPT_S, BatchService
from embellama_server.jobs.upload import Upload
from embellama_server.problems import BadRequest, NotFound, openai_error, problem_of
from embellama_server.reading import ClientGone, check_encoding, read_body
from embellama_server.reply import JSON, dumps
from embellama_server.state import ServerState

FILES, FILE, CONTENT = "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"
BATCHES, BATCH, CANCEL = "/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel"

# Most items of a list, as at OpenAI, and how many there are where nobody says.
MOST_FILES, MOST_BATCHES, USUAL_BATCHES = 10_000, 100, 20

# OpenAI has only 24h.
WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
WINDOW_UNITS = {"m": 60, "h": 3600, "d": 24 * 3600}

# OpenAI's limits of metadata.
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


class ExpiresAfter(msgspec.Struct, frozen=True):
    """How long a file is kept: an hour to 30 days, from when it came."""

    seconds: Annotated[int, Meta(ge=3600, le=KEPT_S)]
    anchor: Literal["created_at"] = "created_at"


class CreateBatchBody(msgspec.Struct):
    """Body of ``POST /v1/batches``; fields it does not know are ignored."""

    input_file_id: str
    endpoint: Literal["/v1/embeddings", "/v1/rerank"]
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


Handler = Callable[[BatchService, Request], Awaitable[Response]]


def routes(state: ServerState, service: BatchService | None) -> list[Route]:
    """Return the routes; without a service, each says that there is none."""
    jobs = _Routes(state)

    def route(path: str, **handlers: Handler) -> Route:
        async def answer(request: Request) -> Response:
            try:
                if service is None:
                    raise NotFound(
                        "files and batches are not kept here; started with --data-dir, the server keeps them"
                    )
                method = "GET" if request.method == "HEAD" else request.method
                return await handlers[method](service, request)
            except ClientGone:
                return Response()  # to nobody
            except EmbellamaError as error:
                problem, headers = problem_of(error)
                return Response(dumps(openai_error(problem)), problem.status, headers, JSON)

        return Route(path, answer, methods=list(handlers))

    return [
        route(FILES, GET=jobs.list_files, POST=jobs.add_file),
        route(FILE, GET=jobs.file, DELETE=jobs.delete_file),
        route(CONTENT, GET=jobs.content),
        route(BATCHES, GET=jobs.list_batches, POST=jobs.create_batch),
        route(BATCH, GET=jobs.batch),
        route(CANCEL, POST=jobs.cancel_batch),
    ]


class _Routes:
    """The routes of one server: each method answers a path."""

    def __init__(self, state: ServerState):
        self._state = state
        self._batch = BodyParser(CreateBatchBody, endpoint="'/v1/embeddings' or '/v1/rerank'")
        self._expires = BodyParser(ExpiresAfter)

    async def add_file(self, service: BatchService, request: Request) -> Response:
        check_encoding(request.scope)
        with Upload(service.folder) as upload:
            await upload.read(self._state, request.scope, request.receive)
            if (purpose := upload.fields.get("purpose")) != "batch":
                told = "is missing" if purpose is None else f"is {purpose!r}"
                raise BadRequest(f"purpose {told}; it must be 'batch'", "purpose")
            record = await service.add_file(upload, _owner(request) or "", self._seconds(upload.fields))
        return _json(record.told())

    async def list_files(self, service: BatchService, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        files = [each for each in service.files(_owner(request)) if purpose in (None, each.purpose)]
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest(f"order is {order[:20]!r}; it must be 'asc' or 'desc'", "order")
        if order == "desc":
            files.reverse()
        return _page(request, files, [each.told() for each in files], MOST_FILES, MOST_FILES)

    async def file(self, service: BatchService, request: Request) -> Response:
        return _json(self._file(service, request).told())

    async def content(self, service: BatchService, request: Request) -> Response:
        record = self._file(service, request)
        return FileResponse(service.folder.path(record.id), media_type="application/octet-stream")

    async def delete_file(self, service: BatchService, request: Request) -> Response:
        record = self._file(service, request)
        await service.delete_file(record)
        return _json({"id": record.id, "object": "file", "deleted": True})

    async def create_batch(self, service: BatchService, request: Request) -> Response:
        check_encoding(request.scope)
        deadline = asyncio.get_running_loop().time() + self._state.config.timeout_ms / 1000
        with HeldBytes(self._state) as held:
            body = self._batch(await read_body(self._state, request.scope, request.receive, deadline, held))
        owner = _owner(request)
        file = service.file(body.input_file_id, owner)
        if file.purpose != "batch":
            raise BadRequest(f"input_file_id is {file.id!r}, whose purpose is {file.purpose!r}", "input_file_id")
        _check_metadata(body.metadata)
        seconds = body.output_expires_after.seconds if body.output_expires_after else KEPT_S
        now = service.now
        record = BatchRecord(
            id=new_id("batch_"),
            owner=owner or "",
            endpoint=body.endpoint,
            input_file_id=file.id,
            window=body.completion_window,
            created_at=now,
            expires_at=now + _window_s(body.completion_window),
            output_seconds=seconds,
            metadata=body.metadata,
        )
        return _json(service.told(await service.create(record)))

    async def list_batches(self, service: BatchService, request: Request) -> Response:
        batches = service.batches(_owner(request))[::-1]
        return _page(request, batches, [service.told(each) for each in batches], MOST_BATCHES, USUAL_BATCHES)

    async def batch(self, service: BatchService, request: Request) -> Response:
        return _json(service.told(service.batch(request.path_params["batch_id"], _owner(request))))

    async def cancel_batch(self, service: BatchService, request: Request) -> Response:
        record = service.batch(request.path_params["batch_id"], _owner(request))
        return _json(service.told(await service.cancel(record)))

    def _file(self, service: BatchService, request: Request) -> FileRecord:
        return service.file(request.path_params["file_id"], _owner(request))

    def _seconds(self, fields: dict[str, str]) -> int | None:
        """Read how long an uploaded file is kept, as forms have objects: a field for each of theirs."""
        given: dict[str, Any] = {
            name.removeprefix("expires_after[").removesuffix("]"): int(value) if value.isdecimal() else value
            for name, value in fields.items()
            if name.startswith("expires_after[")
        }
        return self._expires(dumps(given)).seconds if given else None


def _owner(request: Request) -> str | None:
    """Return whose files and batches a request may see; None for all, where nobody has to say who he is."""
    caller = request.scope.get(CALLER, ANYONE)
    return None if caller is ANYONE else str(caller.name)


def _page(request: Request, records: Sequence[FileRecord | BatchRecord], told: Any, most: int, usual: int) -> Response:
    """Answer with the part of a list that a query asks for."""
    query = request.query_params
    limit = query.get("limit", str(usual))
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise BadRequest(f"limit is {limit[:20]!r}; it must be 1 to {most}", "limit")
    ids = [record.id for record in records]
    start = 0
    if after := query.get("after"):
        if after not in ids:
            raise BadRequest(f"after is {after[:100]!r}, which is not in the list", "after")
        start = ids.index(after) + 1
    end = start + int(limit)
    shown = ids[start:end]
    return _json(
        {
            "object": "list",
            "data": told[start:end],
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
            "has_more": end < len(ids),
        }
    )


def _window_s(window: str) -> int:
    """Read a completion window: ``24h``, or another number of minutes, hours or days, up to 30 days."""
    found = WINDOW.fullmatch(window)
    seconds = int(found[1]) * WINDOW_UNITS[found[2]] if found else 0
    if not 0 < seconds <= KEPT_S:
        says = f"completion_window is {window[:20]!r}; it must be 24h, or as 30m, 6h, 7d, and 30d at most"
        raise BadRequest(says, "completion_window")
    return seconds


def _check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            says = f"metadata has a key of {len(key)} characters with a value of {len(value)}"
            raise BadRequest(f"{says}; the limits are {MAX_KEY} and {MAX_VALUE}", "metadata")
    if metadata and len(metadata) > MAX_PAIRS:
        raise BadRequest(f"metadata has {len(metadata)} pairs; the limit is {MAX_PAIRS}", "metadata")


def _json(body: Any) -> Response:
    return Response(dumps(body), media_type=JSON)
