"""The page at `/`, its files and its headers, without a browser."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from embellama_server.app import build_app
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import LimitStore
from embellama_server.state import ServerState
from embellama_server.web import html
from embellama_server.web.live import EVENTS

from embellama.advice.kept import keep
from tests.advice.sample import REPORT
from tests.server.gateway.conftest import Keys

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}

FILES = sorted(path.name for path in html.FOLDER.iterdir())

# What a browser loads in all, as it goes through all panels.
MOST_BYTES = 60_000


def client_of(state: ServerState, keyring: Keyring | None = None, **settings: Any) -> httpx.AsyncClient:
    state.config = msgspec.structs.replace(state.config, **settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state, keyring)), base_url="http://test")


@pytest.fixture
async def http(state: ServerState) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(state) as http:
        yield http


async def test_a_browser_gets_the_page_and_others_what_they_got_before(http: httpx.AsyncClient) -> None:
    page = await http.get("/", headers=BROWSER)
    assert (page.headers["content-type"], page.headers["vary"]) == ("text/html; charset=utf-8", "accept")
    for accept in ("*/*", "text/plain", "application/json", "*/*, text/html;q=0.5", "text/html;q=0"):
        other = await http.get("/", headers={"accept": accept})
        assert (other.text, other.headers["vary"]) == ("embellama is running", "accept")
    head = await http.head("/", headers=BROWSER)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(page.content)))


@pytest.mark.parametrize("path", ["/", "/docs", *(f"/static/{name}" for name in FILES)])
async def test_nothing_may_be_loaded_from_elsewhere_nor_run_but_files(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers=BROWSER)
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "<style" not in answer.text
    assert " style=" not in answer.text
    assert "innerHTML" not in answer.text


async def test_the_whole_page_is_small(http: httpx.AsyncClient) -> None:
    sizes = {"/": len((await http.get("/", headers=BROWSER)).content)}
    for name in FILES:
        sizes[name] = len((await http.get(f"/static/{name}")).content)
    assert sum(sizes.values()) <= MOST_BYTES, sizes


async def test_files_are_asked_for_again_and_sent_again_only_when_they_changed(http: httpx.AsyncClient) -> None:
    first = await http.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    assert "javascript" in first.headers["content-type"]
    again = await http.get("/static/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["no.js", "", "..%2Fpage.py", "%2e%2e/page.py", "..%5cpage.py", "%00", "a%2Fb", "app.js%00"]
)
async def test_only_files_of_the_folder_are_there(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/static/{name}")).status_code == 404


async def test_files_are_below_the_root_path(state: ServerState) -> None:
    async with client_of(state, root_path="/a/b") as http:
        for path in ("/", "/a/b", "/a/b/"):
            assert 'src="/a/b/static/app.js"' in (await http.get(path, headers=BROWSER)).text
        for path in ("/static/app.js", "/a/b/static/app.js"):
            assert (await http.get(path)).status_code == 200


async def test_without_the_page_there_is_what_the_docs_need(state: ServerState) -> None:
    async with client_of(state, page=False) as http:
        root = await http.get("/", headers=BROWSER)
        assert (root.text, root.headers.get("vary")) == ("embellama is running", None)
        paths = (EVENTS, "/static/app.js")
        assert [(await http.get(path)).status_code for path in paths] == [404, 404]
        docs = (await http.get("/docs")).text
        for path in re.findall('(?:href|src)="(/static/[^"]+)"', docs):
            assert (await http.get(path)).status_code == 200, path
        assert 'href="/static/style.css"' in docs
        assert ">Page</a>" not in docs
    assert state.metrics.recent is None, "requests are counted for nobody"


async def test_the_page_needs_no_key_and_all_that_it_shows_does(state: ServerState, tmp_path: Path) -> None:
    keys = Keys(tmp_path, free={}, operator={"admin": True})
    keyring = Keyring(str(keys.path), LimitStore())
    async with client_of(state, keyring, keys_file=str(keys.path)) as http:
        assert 'data-keys="yes"' in (await http.get("/", headers=BROWSER)).text
        assert (await http.get("/static/app.js")).status_code == 200
        for path in ("/", "/v1/models", "/static", "/docs", EVENTS):
            assert (await http.get(path)).status_code == 401, path
        assert (await http.post("/", json={"inputs": "a"}, headers=BROWSER)).status_code == 401
        for path in (EVENTS, "/admin/bench"):
            statuses = [
                (await http.head(path, headers={"x-api-key": keys[name]})).status_code for name in ("free", "operator")
            ]
            assert statuses == [403, 200], path


async def test_the_last_bench_is_shown(
    http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (await http.get("/admin/bench")).json() == {"bench": None}
    keep(REPORT)
    [row] = (await http.get("/admin/bench")).json()["bench"]["report"]["rows"]
    assert (row["name"], row["texts_per_s"]) == ("f16", 100)
