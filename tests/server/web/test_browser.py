"""The page in Chromium: the live view and the bench, by clicks and keys."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from embellama_server.web.page import PANELS
from playwright.sync_api import Page, expect

from tests.conftest import Server, running_server
from tests.server.gateway.conftest import Keys
from tests.server.web.conftest import LOOKS, OpenPage, check_accessible
from tests.server.web.test_live import events_of

pytestmark = pytest.mark.server

# An id may be any printable ASCII.
HOSTILE_ID = '<img/src=x/onerror="document.title=1"><script>alert(1)</script>&lt;'

# On a machine that the whole suite keeps busy. Alone it takes a tenth of that.
FIRST_PAINT_MS = 1000


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), free={}, operator={"admin": True})


@pytest.fixture(scope="module")
def guarded(tiny_path: str, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    with running_server(log, "--model-path", tiny_path, "--workers", "1", "--keys-file", str(keys.path)) as server:
        yield server


def panel(page: Page, title: str) -> None:
    page.get_by_role("link", name=title, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(title)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_panel_and_the_api_are_accessible(shown: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    with open_page(shown, "/a/b/", width=width, scheme=scheme) as page:
        for each in PANELS:
            panel(page, each.title)
            if each.name == "pool":
                page.get_by_text("The last ten minutes as numbers").click()
                expect(page.get_by_role("cell", name="this minute")).to_be_visible()
            if each.name == "bench":
                expect(page.get_by_role("cell", name="100 texts/s")).to_be_visible()
            check_accessible(page)
        panel(page, "API")
        check_accessible(page)
        page.get_by_role("link", name="Page").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Pool")


def test_the_pool_is_shown_and_hostile_ids_are_text(shown: Server, open_page: OpenPage) -> None:
    with open_page(shown, "/a/b") as page:
        expect(page.get_by_text("2 of 2 workers ready, 1 model")).to_be_visible()
        body = {"model": "no", "input": "x"}
        httpx.post(f"{shown.url}/v1/embeddings", json=body, headers={"x-request-id": HOSTILE_ID})
        workers = page.get_by_role("region", name="Workers of tiny").get_by_role("row")
        expect(workers).to_have_count(3)
        for worker in shown.workers():
            expect(page.get_by_role("cell", name=str(worker.pid), exact=True)).to_be_visible()
        expect(page.get_by_role("region", name="Cache of tiny").get_by_role("cell").first).to_have_text("memory")
        expect(page.get_by_role("region", name="Last errors").get_by_text(HOSTILE_ID)).to_be_visible()
        for _ in range(3):
            httpx.post(f"{shown.url}/v1/embeddings", json={"model": "tiny", "input": ["red", "green"]})
        expect(page.get_by_role("img", name=re.compile("^Texts per second.*at most [1-9]"))).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("^Latency.*at most [0-9.]+ ms"))).to_be_visible()
        assert page.title() == "Pool – embellama"


def test_a_killed_worker_and_its_successor_are_shown_and_told(shown: Server, open_page: OpenPage) -> None:
    with open_page(shown, "/a/b/") as page:
        [victim, _] = shown.workers()
        expect(page.get_by_role("cell", name=str(victim.pid), exact=True)).to_be_visible()
        os.kill(victim.pid, signal.SIGKILL)
        expect(page.get_by_role("cell", name=str(victim.pid), exact=True)).to_have_count(0)
        news = page.locator("[data-news]")
        expect(news).to_contain_text(f"process {victim.pid} is gone")
        expect(news).to_contain_text("took its place")
        shown.wait_ready()
        expect(page.get_by_text("2 of 2 workers ready, 1 model")).to_be_visible()
        for worker in shown.workers():
            expect(page.get_by_role("cell", name=str(worker.pid), exact=True)).to_be_visible()


def test_it_is_used_by_keys_alone_and_what_has_the_focus_keeps_it(shown: Server, open_page: OpenPage) -> None:
    with open_page(shown, "/a/b/") as page:
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=PANELS[0].title)).to_be_focused()
        for link in page.locator("nav a[href^='#']").all()[1:]:
            link.press("Enter")
            expect(link).to_have_attribute("aria-current", "page")
            expect(page.get_by_role("main")).to_be_focused()
        page.locator("nav a[href^='#']").first.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        region = page.get_by_role("region", name="Workers of tiny")
        region.focus()
        misses = page.get_by_role("region", name="Cache of tiny").get_by_role("cell").nth(2)
        before = misses.inner_text()
        httpx.post(f"{shown.url}/v1/embeddings", json={"model": "tiny", "input": "red red green green blue"})
        expect(misses).not_to_have_text(before)
        expect(region).to_be_focused()


def test_a_phone_shows_every_panel_in_the_bar(shown: Server, open_page: OpenPage) -> None:
    with open_page(shown, "/a/b/", width=390) as page:
        assert page.get_by_role("navigation").evaluate("(bar) => bar.scrollWidth <= bar.clientWidth")


def test_a_key_is_asked_for_once_and_kept_for_the_tab(guarded: Server, keys: Keys, open_page: OpenPage) -> None:
    with open_page(guarded, told=("401", "403")) as page:
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        check_accessible(page)
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("the API key is not known here")
        page.get_by_label("Key", exact=True).fill(keys["free"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("403: /admin/events is for keys with admin")
        panel(page, "API")
        expect(page.get_by_role("alert")).to_contain_text("403: /docs is for keys with admin")
        panel(page, "Pool")
        page.get_by_role("button", name="Change key").click()
        page.get_by_label("Key", exact=True).fill(keys["operator"])
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("1 of 1 workers ready, 1 model")).to_be_visible()
        page.reload()
        expect(page.get_by_text("1 of 1 workers ready, 1 model")).to_be_visible()
        expect(dialog).to_be_hidden()
        panel(page, "API")
        expect(page.get_by_role("heading", name="POST /v1/rerank")).to_be_visible()
        check_accessible(page)
        page.reload()
        panel(page, "API")
        expect(page.get_by_role("heading", name="POST /v1/rerank")).to_be_visible()
        panel(page, "Pool")
        expect(page.get_by_text("1 of 1 workers ready, 1 model")).to_be_visible()
    with open_page(guarded) as page:  # another tab
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_have_text("401: No key was given.")


def test_streams_end_when_the_server_stops_and_the_page_says_so(
    tiny_path: str, tmp_path: Path, open_page: OpenPage
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path / "log", "--model-path", tiny_path, "--workers", "1"))
        page = stack.enter_context(open_page(server, told=("ERR_CONNECTION_REFUSED",)))
        expect(page.get_by_text("1 of 1 workers ready, 1 model")).to_be_visible()
        with events_of(server) as events:
            next(events)
            server.process.terminate()
            assert all(name == "now" for name, _ in events)  # to its end, and no error
        assert server.process.wait(20) == 0
        expect(page.get_by_role("alert")).to_contain_text("does not answer")


def test_something_is_painted_within_a_second(shown: Server, open_page: OpenPage) -> None:
    paints = []
    for _ in range(2):
        with open_page(shown, "/a/b/") as page:
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    assert min(paints) < FIRST_PAINT_MS
