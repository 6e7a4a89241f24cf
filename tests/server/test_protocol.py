"""What `Protocol` overrides in uvicorn that uvicorn promises nobody. See the ceiling of uvicorn in pyproject.toml."""

import asyncio
import inspect
from typing import Any

import uvicorn
from embellama_server.protocol import Protocol
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState


def test_uvicorn_starts_requests_with_the_private_method_that_protocol_overrides() -> None:
    start = getattr(HttpToolsProtocol, "_start_asgi_task", None)
    assert start, f"uvicorn {uvicorn.__version__} has no HttpToolsProtocol._start_asgi_task; see protocol.py"
    assert [*inspect.signature(start).parameters] == ["self", "cycle", "app"]


def test_uvicorn_has_what_protocol_does_in_its_place() -> None:
    # `data_received` and `__init__` there: a parser made anew must be as lenient, and the idle timeout must stop.
    assert [*inspect.signature(HttpToolsProtocol._unset_keepalive_if_required).parameters] == ["self"]
    assert inspect.getsource(HttpToolsProtocol.__init__).count(
        "set_dangerous_leniencies(lenient_data_after_close=True)"
    )
    assert inspect.getsource(HttpToolsProtocol.data_received).count("self._unset_keepalive_if_required()") == 1


async def test_each_request_of_a_connection_is_started_by_it() -> None:
    started = []

    class Recorded(Protocol):
        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            super()._start_asgi_task(cycle, app)
            started.append(self._answering is cycle)

    config = uvicorn.Config(PlainTextResponse("hello"), ws="none", lifespan="off", log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Recorded(config, ServerState(), {}, loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for _ in range(2):  # the second, which came before the first was answered, is started elsewhere in uvicorn
        writer.write(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
    for _ in range(2):
        await reader.readuntil(b"hello")
    writer.close()
    await writer.wait_closed()
    server.close()
    assert started == [True, True]
