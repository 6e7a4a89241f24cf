"""`/admin/events`: how the server is, each second."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from embellama_server.web.live import EVENTS, MAX_STREAMS

from tests.conftest import ROOT, Server, wait_until

pytestmark = pytest.mark.server

Event = tuple[str, dict[str, Any]]


@contextlib.contextmanager
def events_of(server: Server) -> Iterator[Iterator[Event]]:
    """Open a stream of events."""
    with httpx.stream("GET", f"{server.url}{EVENTS}", timeout=30) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"

        def events() -> Iterator[Event]:
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

        yield events()


def test_the_past_comes_first_and_then_what_is_now(shown: Server) -> None:
    with events_of(shown) as events:
        (past, then), (first, now), (second, later) = (next(events) for _ in range(3))
    assert (past, first, second) == ("past", "now", "now")
    assert len(then["seconds"]) >= 598  # those that ended meanwhile come later
    assert now["seconds"] == []
    assert 1 <= len(later["seconds"]) <= 3
    [model] = later["models"]
    assert (model["name"], model["dimensions"], model["status"], model["n_ready"]) == ("tiny", 32, "ok", 2)
    assert {worker["pid"] for worker in model["workers"]} == {worker.pid for worker in shown.workers()}
    assert [worker["stage"] for worker in model["workers"]] == ["ready", "ready"]
    assert all(worker["resident"] > 0 for worker in model["workers"])
    assert model["queue"]["requests"] == model["queue"]["tokens"] == 0
    assert [layer["name"] for layer in model["cache"]] == ["memory"]


def test_requests_are_counted_in_the_second_in_which_they_ended(shown: Server) -> None:
    with events_of(shown) as events:
        next(events), next(events)
        for text in ("red", "blue", "red"):
            body = {"model": "tiny", "input": [text, "green"]}
            assert httpx.post(f"{shown.url}/v1/embeddings", json=body).status_code == 200
        httpx.post(f"{shown.url}/v1/embeddings", json={"model": "no", "input": "x"}, headers={"x-request-id": "id-1"})
        seconds, errors = [], []
        for _, event in events:
            seconds += event["seconds"]
            errors += event.get("errors", [])
            if sum(second[0] for second in seconds) == 4:
                break
    assert (sum(second[1] for second in seconds), sum(second[2] for second in seconds)) == (1, 6)
    for n_requests, n_failed, _, milliseconds in seconds:
        assert (milliseconds is not None) == (n_requests > n_failed)
        assert milliseconds == sorted(milliseconds or []) or milliseconds is None
    told = errors[-1]
    assert (told["request_id"], told["status"], told["code"]) == ("id-1", 404, "model_not_found")
    with events_of(shown) as events:  # who comes later sees the same
        _, past = next(events)
        _, now = next(events)
    assert past["errors"][-1] == told
    assert sum(second[0] for second in past["seconds"] + now["seconds"]) >= 4


def test_a_killed_worker_and_its_successor_are_shown(shown: Server) -> None:
    victim, other = shown.workers()

    def n_restarts(workers: list[dict[str, Any]]) -> int:
        return sum(int(worker["n_restarts"]) for worker in workers)

    with events_of(shown) as events:
        _, (_, before) = next(events), next(events)
        os.kill(victim.pid, signal.SIGKILL)
        _, (_, second) = next(events), next(events)
        assert victim.pid not in [worker["pid"] for worker in second["models"][0]["workers"]]
        for _, event in events:
            workers = event["models"][0]["workers"]
            if [worker["stage"] for worker in workers] == ["ready", "ready"]:
                break
    assert n_restarts(workers) == n_restarts(before["models"][0]["workers"]) + 1
    assert (
        {worker["pid"] for worker in workers} == {worker.pid for worker in shown.workers()} != {victim.pid, other.pid}
    )


def connected(server: Server) -> socket.socket:
    """Open a stream and read the beginning of its answer."""
    address = urlsplit(server.url)
    client = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)
    client.sendall(f"GET {EVENTS} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def test_streams_have_a_limit_and_make_room_when_they_end(shown: Server) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(connected(shown)) for _ in range(MAX_STREAMS)]
        refused = httpx.get(f"{shown.url}{EVENTS}")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert f"the limit is {MAX_STREAMS}" in refused.json()["error"]["message"]
        streams[0].close()

        def has_room() -> bool:
            return httpx.head(f"{shown.url}{EVENTS}").status_code == 200

        wait_until(has_room, "there is room for one more")
    with events_of(shown) as events:
        next(events)


def test_the_documents_command_runs(shown: Server) -> None:
    [command] = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "page.md").read_text(), re.DOTALL)
    told = subprocess.check_output(["bash", "-c", command.replace("http://127.0.0.1:8000", shown.url)], text=True)
    assert re.fullmatch(r"event: past\ndata: \{.*\}\n\nevent: now\ndata: \{.*\}\n", told)
