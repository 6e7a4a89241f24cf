"""What `embellama bench` found on this machine, for administrators.

embellama.advice.kept ──► GET /admin/bench ──► the page's panel
"""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embellama.advice.kept import KeptReport, kept
from embellama_server.reply import JSON

BENCH = "/admin/bench"


class LastBench(msgspec.Struct, frozen=True):
    """The last report of this machine; None if there is none."""

    bench: KeptReport | None


def routes() -> list[Route]:
    """Return the route of the report."""

    async def bench(_: Request) -> Response:
        last = LastBench(await asyncio.to_thread(kept))
        return Response(msgspec.json.encode(last), media_type=JSON)

    return [Route(BENCH, bench)]
