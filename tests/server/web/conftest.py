"""What tests of the page share: Chromium, driven by Playwright, and what must be true of whatever they do there."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from embellama.advice.kept import keep
from tests.advice.sample import REPORT
from tests.conftest import Server, running_server
from tests.programs import program

LOOKS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]

OpenPage = Callable[..., contextlib.AbstractContextManager[Page]]


@pytest.fixture(scope="session")
def shown(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two workers below a path, on a machine where bench was run."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        keep(REPORT)
        with running_server(
            folder / "log", "--model-path", tiny_path, "--workers", "2", "--root-path", "/a/b"
        ) as server:
            yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # While Playwright is there its event loop runs, and no other can: modules that use it have no asynchronous tests.
    # Without a sandbox of its own, which needs rights that root in a container has not; it opens our own page only.
    path, flags = program("chromium"), ["--no-sandbox", "--disable-dev-shm-usage"]
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=path, args=flags)) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def open_page(browser: Browser) -> OpenPage:
    """Open a server's page: ``with open_page(server, "/#pool", width=390, scheme="dark") as page:``.

    While it is open, it asks its own origin only, and its console stays silent but for what `told` allows.
    """

    @contextlib.contextmanager
    def opened(
        server: Server, path: str = "/", *, width: int = 1440, scheme: Any = "light", told: tuple[str, ...] = ()
    ) -> Iterator[Page]:
        asked: list[str] = []
        heard: list[str] = []
        with contextlib.closing(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=server.url)
        ) as context:
            context.set_default_timeout(20_000)
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: heard.append(message.text))
            page.on("pageerror", lambda error: heard.append(str(error)))
            page.goto(path)
            yield page
        assert [url for url in asked if not url.startswith((f"{server.url}/", "blob:", "data:"))] == []
        assert [line for line in heard if not any(each in line for each in told)] == []

    return opened


def check_accessible(page: Page) -> None:
    """Fail if axe-core finds anything on the page as it is now, or if it is wider than the window."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
