"""Points in a plane for vectors, so that many texts can be looked at at once.

POST /projection: the bytes that /v1/embeddings answers ── one thread: principal_plane ──► a point for each row

The body and its two headers are an answer of `application/octet-stream`, as it came: nothing is computed twice, and
vectors of any model can be sent.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama.errors import DeadlineExceeded
from embellama_server.held import HeldBytes
from embellama_server.problems import BadRequest
from embellama_server.reading import ClientGone, check_encoding, read_body
from embellama_server.state import ServerState
from embellama_server.web.pages import as_json, error_response

PATH = "/projection"
SHAPE, DTYPE = "x-embedding-shape", "x-embedding-dtype"

# More points than these are a cloud; and the time taken grows with the cube of rows or columns, whichever are fewer.
MOST_ROWS = 2000
DTYPES = {"float32": "<f4", "float16": "<f2"}

# More axes than so many would keep the thread for a minute.
MOST_COLUMNS = 16_384

SHAPE_FORMAT = re.compile(r"([0-9]{1,9}), ?([0-9]{1,9})")


class ProjectionAnswer(TypedDict):
    """A point for each row, in their order, and the share of the rows' variance along each axis, 0 to 1."""

    object: Literal["projection"]
    points: list[tuple[float, float]]
    explained: tuple[float, float]


class Plane(NamedTuple):
    """Rows as points in a plane.

    points: ``(n, 2) float32``, in the rows' order; their mean is 0.
    explained: ``(2,) float32``, the share of the rows' variance along each axis.
    """

    points: NDArray[np.float32]
    explained: NDArray[np.float32]


def routes(state: ServerState) -> list[Route]:
    """Return the projection's route."""
    return [Route(PATH, _Projection(state).project, methods=["POST"])]


def principal_plane(rows: NDArray[np.floating[Any]]) -> Plane:
    """Project rows onto the two axes along which they differ most (principal components).

    Rows that are the same but for their order have the same points: of each axis, the largest number is positive.

    Args:
        rows: ``(n, dim)``, finite.
    """
    n, dim = rows.shape
    scale = float(np.abs(rows).max()) or 1.0  # squares of huge numbers are infinite
    centred = rows.astype(np.float64) / scale
    centred -= centred.mean(axis=0)
    points, explained = np.zeros((n, 2)), np.zeros(2)
    total = float(np.square(centred).sum())
    if total > rows.size * np.finfo(np.float32).eps ** 2:  # else they are all the same, and there is no axis
        # The eigenvectors of the smaller product tell those of the larger.
        product = centred.T @ centred if dim <= n else centred @ centred.T
        values, vectors = (found[..., ::-1][..., :2] for found in np.linalg.eigh(product))
        axes = vectors if dim <= n else centred.T @ vectors
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], 0))
        explained[: len(values)] = values.clip(0) / total
        points[:, : len(values)] = (centred @ vectors if dim <= n else vectors * np.sqrt(values.clip(0))) * signs
    most = np.finfo(np.float32).max  # rows as long as numbers can be are longer than one along an axis
    return Plane((points * scale).clip(-most, most).astype(np.float32), explained.astype(np.float32))


class _Projection:
    """The route of one server; one request at a time is computed, the others wait."""

    def __init__(self, state: ServerState):
        self._state = state
        self._thread = ThreadPoolExecutor(1, "projection")

    async def project(self, request: Request) -> Response:
        loop, timeout_ms = asyncio.get_running_loop(), self._state.config.timeout_ms
        deadline = loop.time() + timeout_ms / 1000
        try:
            check_encoding(request.scope)
            shape, dtype = _layout(request)
            with HeldBytes(self._state) as held:
                body = await read_body(self._state, request.scope, request.receive, deadline, held)
                rows = _rows(body, shape, dtype)
                held.reserve(3 * 8 * rows.size)  # in float64, and what is made of them
                async with asyncio.timeout_at(deadline):
                    plane = await loop.run_in_executor(self._thread, principal_plane, rows)
        except ClientGone:
            return Response()  # to nobody
        except TimeoutError:
            return error_response(request, DeadlineExceeded(timeout_ms))
        except Exception as error:
            return error_response(request, error)
        return as_json({"object": "projection", "points": plane.points, "explained": plane.explained})


def _layout(request: Request) -> tuple[tuple[int, int], str]:
    """Read the rows' shape and dtype from the headers."""
    shape, dtype = request.headers.get(SHAPE, ""), request.headers.get(DTYPE, "")
    found = SHAPE_FORMAT.fullmatch(shape)
    if not found:
        raise BadRequest(f"{SHAPE} is {shape!r}; it must be rows, columns, such as 100,384", SHAPE)
    n, dim = int(found[1]), int(found[2])
    for what, number, most in (("rows", n, MOST_ROWS), ("columns", dim, MOST_COLUMNS)):
        if not 1 <= number <= most:
            raise BadRequest(f"{SHAPE} has {number} {what}; it must be 1 to {most}", SHAPE)
    if dtype not in DTYPES:
        raise BadRequest(f"{DTYPE} is {dtype!r}; it must be one of {', '.join(DTYPES)}", DTYPE)
    return (n, dim), DTYPES[dtype]


def _rows(body: bytes, shape: tuple[int, int], dtype: str) -> NDArray[np.floating[Any]]:
    """Read rows from a body; raises `BadRequest` if it has another length, or a number that is none."""
    expected = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if len(body) != expected:
        raise BadRequest(f"the body has {len(body)} bytes; {SHAPE} and {DTYPE} say {expected}")
    rows: NDArray[np.floating[Any]] = np.frombuffer(body, dtype).reshape(shape)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise BadRequest(f"row {int(finite.argmin())} has a number that is not finite")
    return rows
