"""The page at `/`, as a browser has it: done by clicks and keys."""

import httpx
import pytest
from embellama_server.web.page import PANELS
from playwright.sync_api import expect

from tests.conftest import Server
from tests.server.web.conftest import LOOKS, OpenPage, check_accessible

pytestmark = [pytest.mark.model, pytest.mark.server]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_panel_and_the_api_are_accessible(server: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    with open_page(server, width=width, scheme=scheme) as page:
        for panel in PANELS:
            page.get_by_role("link", name=panel.title, exact=True).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(panel.title)
            check_accessible(page)
        page.get_by_role("link", name="API").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("API")
        check_accessible(page)


def test_a_browser_gets_the_page_and_others_what_they_got_before(server: Server) -> None:
    browsers = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = httpx.get(server.url, headers={"accept": browsers})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for headers in ({}, {"accept": "text/plain"}, {"accept": "application/json"}, {"accept": "*/*, text/html;q=0.5"}):
        other = httpx.get(server.url, headers=headers)
        assert (other.text, other.headers["vary"]) == ("embellama is running", "accept")
    assert page.headers["vary"] == "accept"
