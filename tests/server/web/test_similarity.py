"""Similarity: a heat map, a ranking and a map of texts, and their files; done by clicks and keys."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, expect

from embellama.similarity import cosine, max_sim
from tests.conftest import Server, TinyModel, running_server
from tests.server.web.conftest import LOOKS, OpenPage, check_accessible
from tests.server.web.test_playground import HOSTILE, fill, open_file

pytestmark = [pytest.mark.model, pytest.mark.server]

PATH = "/#similarity"
CATS = ["A cat sleeps.", "The kitten naps.", "Cats sleep all day."]
MONEY = ["Stocks fell on Monday.", "The market lost money.", "Shares were sold."]
MIXED = [text for pair in zip(CATS, MONEY, strict=True) for text in pair]


@pytest.fixture(scope="module")
def tiny_server(tiny_path: str, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of three models: one with word pieces, one with bytes, and a reranker."""
    folder = tmp_path_factory.mktemp("similarity")
    paths = {"tiny": tiny_path, "bytes": tiny("roberta"), "reranker": tiny("bert-reranker")}
    models = [f'[[models]]\nmodel_path = "{path}"\nmodel_name = "{name}"\n' for name, path in paths.items()]
    (folder / "three.toml").write_text("\n".join(models))
    with running_server(folder / "log", "--config", str(folder / "three.toml"), "--workers", "1") as server:
        yield server


def choose(page: Page, view: str) -> None:
    page.get_by_label("View").select_option(view)


def compare(page: Page, view: str, *texts: str) -> None:
    """Look at texts in a view, and wait until it is drawn."""
    choose(page, view)
    if len(texts) > 64:
        open_file(page, *texts)
    else:
        fill(page, *texts)
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Download CSV").wait_for()


def downloaded(page: Page, kind: str, name: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {kind}").click()
    assert download.value.suggested_filename == f"{name}.{kind.lower()}"
    return Path(download.value.path()).read_bytes().decode()


def vectors(server: Server, *texts: str) -> NDArray[np.float32]:
    body = {"model": "minilm", "input": texts}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body).json()
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_heat_map_shows_how_alike_texts_are(server: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    rows = vectors(server, *MIXED)
    alike = cosine(rows, rows)
    with open_page(server, PATH, width=width, scheme=scheme) as page:
        compare(page, "Heat map", *MIXED)
        told = page.locator("#similarity .card").last.get_by_role("status")
        page.locator("rect[data-at='0 2']").hover()
        expect(told).to_have_text(f"{alike[0, 2]:.3f} 1 {MIXED[0]} and 3 {MIXED[2]}")
        page.get_by_role("application").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowLeft")
        expect(told).to_have_text(f"{alike[1, 1]:.3f} 2 {MIXED[1]} and 2 {MIXED[1]}")
        for _ in range(9):  # no farther than the edge
            page.keyboard.press("ArrowUp")
        expect(told).to_contain_text(f"{alike[0, 1]:.3f} 1 ")
        page.get_by_label("Sort by cluster").check()
        page.get_by_text("Table of values").click()
        table = page.get_by_role("region", name="Table of values").get_by_role("row")
        order = [int(row.split()[0]) - 1 for row in table.all_inner_texts()[1:]]
        assert sorted(order[:3]) in ([0, 2, 4], [1, 3, 5])  # like beside like
        assert table.nth(1).inner_text().split("\t")[1:] == [f"{alike[order[0], j]:.3f}" for j in order]
        check_accessible(page)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_ranking_underlines_what_matched(server: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    query = "the kitten"
    with open_page(server, PATH, width=width, scheme=scheme) as page:
        choose(page, "Query")
        page.get_by_role("textbox", name="Query").fill(query)
        compare(page, "Query", *MIXED)
        items = page.locator("#similarity .answers > li")
        expect(items.nth(0).locator("bdi").first).to_have_text("The kitten naps.")
        expect(items.nth(0).locator("u.strong")).to_have_text(["The", "kitten"])
        items.nth(0).get_by_text("Tokens").click()
        found = items.nth(0).get_by_role("row").all_inner_texts()
        assert [line.split("\t")[:2] for line in found[1:]] == [["the", "the"], ["kitten", "kitten"]]
        check_accessible(page)


def test_texts_whose_tokens_are_too_many_are_ranked_all_the_same(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH, told=("400",)) as page:
        choose(page, "Query")
        page.get_by_role("textbox", name="Query").fill("the kitten")
        compare(page, "Query", "word " * 40_000, "cat " * 30_000, "The kitten naps.")
        expect(page.locator("#similarity .answers bdi").first).to_have_text("The kitten naps.")
        expect(page.get_by_text("Tokens were not compared: the request has 320026 characters")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_map_lists_what_is_drawn_around(server: Server, open_page: OpenPage, width: int, scheme: str) -> None:
    with open_page(server, PATH, width=width, scheme=scheme) as page:
        compare(page, "Map", *MIXED)
        count = page.locator("#similarity h2").last
        picture, dots = page.get_by_role("application"), page.locator("path[data-i]")
        expect(count).to_have_text("0 of 6 texts selected")
        picture.scroll_into_view_if_needed()
        x, y = middle(dots.nth(0))
        draw(page, [(x - 5, y - 5), (x + 30, y - 3), (x - 3, y + 30)])
        expect(page.locator("#similarity .list li").first).to_have_text(MIXED[0])
        told = page.locator("#similarity .card").last.get_by_role("status")
        page.mouse.move(*middle(dots.nth(3)))
        expect(told).to_have_text(f"4 {MIXED[3]}")
        before, shown = middle(dots.nth(3)), picture.locator("svg").get_attribute("viewBox") or ""
        page.mouse.wheel(0, -100)
        expect(picture.locator("svg")).not_to_have_attribute("viewBox", shown)
        assert middle(dots.nth(3)) == pytest.approx(before, abs=1)  # what the pointer is at stays there
        page.get_by_role("button", name="Show all").click()
        picture.focus()
        page.keyboard.press("Escape")
        expect(count).to_have_text("0 of 6 texts selected")
        page.keyboard.press("Space")
        expect(told).to_have_text(f"4 {MIXED[3]} (selected)")
        page.get_by_label("Select texts with").fill("CAT")
        expect(page.locator("#similarity .list li")).to_have_text([CATS[0], CATS[2]])
        check_accessible(page)


def middle(shape: Locator) -> tuple[float, float]:
    """Return where a shape is in the window."""
    x, y, width, height = shape.evaluate(
        "(e) => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }"
    )
    return x + width / 2, y + height / 2


def draw(page: Page, corners: list[tuple[float, float]]) -> None:
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()


def test_arrow_keys_reach_every_text_of_a_map(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        compare(page, "Map", *MIXED, MIXED[0])  # two of them are at the same place
        told = page.locator("#similarity .card").last.get_by_role("status")
        page.get_by_role("application").focus()
        for back, on in (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown")):
            for _ in range(7):
                page.keyboard.press(back)
            reached = set()
            for _ in range(7):
                reached.add(told.inner_text())
                page.keyboard.press(on)
            assert len(reached) == 7


@pytest.mark.parametrize(
    ("view", "texts", "message"),
    [
        ("Heat map", ["one"], "There are 1 texts; it must be 2 to 64."),
        ("Heat map", [f"text {i}" for i in range(65)], "There are 65 texts; it must be 2 to 64."),
        ("Map", [f"text {i}" for i in range(2001)], "There are 2001 texts; it must be 2 to 2000."),
        ("Query", ["one"], "The query is empty."),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tiny_server: Server, open_page: OpenPage, view: str, texts: list[str], message: str
) -> None:
    with open_page(tiny_server, PATH) as page:
        choose(page, view)
        open_file(page, *texts) if len(texts) > 1 else fill(page, *texts)
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#similarity").get_by_role("alert")).to_have_text(message)


def test_the_model_that_is_chosen_is_asked(tiny_server: Server, open_page: OpenPage) -> None:
    with open_page(tiny_server, PATH, told=("400",)) as page:
        page.get_by_label("Model").locator("visible=true").select_option("bytes")
        choose(page, "Query")
        page.get_by_role("textbox", name="Query").fill("red")
        compare(page, "Query", "blue red", "red 🎈")
        expect(page.locator("#similarity u").first).to_be_visible()
        page.get_by_label("Model").locator("visible=true").select_option("reranker")
        compare(page, "Query", "blue", "red")
        expect(page.locator("#similarity")).to_contain_text("Scored by a reranker.")
        choose(page, "Heat map")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#similarity").get_by_role("alert")).to_contain_text("400: model 'reranker' is a reranker")


def test_as_many_texts_as_are_allowed_are_drawn(tiny_server: Server, open_page: OpenPage) -> None:
    words = ["red", "blue", "green", "one", "two"]
    texts = [" ".join(words[(i // 5**k) % 5] for k in range(5)) for i in range(2000)]
    with open_page(tiny_server, PATH) as page:
        compare(page, "Map", *texts)
        expect(page.locator("path[data-i]")).to_have_count(2000)
        page.get_by_label("Select texts with").fill("red red red red red")
        expect(page.locator("#similarity h2").last).to_have_text("1 of 2000 texts selected")
        compare(page, "Heat map", *texts[:64])
        page.get_by_label("Sort by cluster").check()
        expect(page.locator("rect[data-at]")).to_have_count(64 * 64)


def test_what_is_drawn_can_be_kept(server: Server, open_page: OpenPage) -> None:
    texts = [*HOSTILE, "=1+1", "@SUM(A1)", '-"quoted", and more', *MIXED]
    safe = [f"'{text}" if text[0] in "=@-" else text for text in texts]
    texts_alike = cosine(*[vectors(server, *texts)] * 2)
    with open_page(server, PATH) as page:
        compare(page, "Heat map", *texts)
        cells = [*csv.reader(io.StringIO(downloaded(page, "CSV", "similarity"), newline=""))]
        assert cells[0] == ["text", *(f"cosine {i + 1}" for i in range(len(texts)))]
        assert [row[0] for row in cells[1:]] == safe
        np.testing.assert_allclose(np.array([row[1:] for row in cells[1:]], float), texts_alike, atol=1e-3)
        lines = [json.loads(line) for line in downloaded(page, "JSONL", "similarity").splitlines()]
        assert [line["text"] for line in lines] == texts
        drawn = ElementTree.fromstring(downloaded(page, "SVG", "similarity"))
        labels = ["".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}tspan")]
        assert labels[-1] == MIXED[-1]
        assert labels[0].startswith("<img src=x")
        assert {each.tag.rpartition("}")[2] for each in drawn.iter()} == {"svg", "rect", "text", "tspan"}
        assert all(each.get("fill", "").startswith("hsl") for each in drawn.iter() if each.get("data-at"))

        compare(page, "Map", *texts)
        [head, *rows] = csv.reader(io.StringIO(downloaded(page, "CSV", "map"), newline=""))
        assert head == ["x", "y", "selected", "text"]
        assert [row[3] for row in rows] == safe
        assert len(downloaded(page, "JSONL", "map").splitlines()) == len(texts)
        dots = ElementTree.fromstring(downloaded(page, "SVG", "map")).iter("{http://www.w3.org/2000/svg}path")
        assert len([*dots]) == len(texts)


def test_hostile_texts_are_shown_as_text(server: Server, open_page: OpenPage) -> None:
    with open_page(server, PATH) as page:
        choose(page, "Query")
        page.get_by_role("textbox", name="Query").fill(HOSTILE[0])
        texts = [*HOSTILE, "word " * 20_000]
        for view in ("Query", "Heat map", "Map"):
            compare(page, view, *texts)
            assert page.locator("#similarity img, #similarity script, #similarity a").count() == 0
            assert page.title() == "Similarity – embellama"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if view == "Query":
                shown = page.locator("#similarity .answers > li > bdi").all_text_contents()
                assert sorted(shown) == sorted(texts)  # whole
                assert shown[0] == HOSTILE[0]


@pytest.fixture(scope="module")
def program(server: Server, open_page: OpenPage) -> Iterator[Page]:
    """The page, for its modules to be called."""
    with open_page(server) as page:
        yield page


def called(page: Page, function: str, *arguments: Any) -> Any:
    script = "async ([name, given]) => (await import('./static/vectors.js'))[name](...given)"
    return page.evaluate(script, [function, arguments])


ROWS = st.integers(2, 5).flatmap(
    lambda dim: st.lists(st.lists(st.floats(-1, 1, width=16), min_size=dim, max_size=dim), min_size=2, max_size=7)
)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(ROWS, st.data())
def test_the_best_matches_are_those_of_max_sim(program: Page, rows: list[list[float]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(rows) - 1))
    found = called(program, "best", rows[:cut], rows[cut:])
    query, document = (np.array(each, np.float32) for each in (rows[:cut], rows[cut:]))
    assert sum(each["alike"] for each in found) == pytest.approx(max_sim(query, document), abs=1e-5)
    for row, each in zip(query, found, strict=True):
        assert row @ document[each["place"]] == pytest.approx(each["alike"], abs=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=20))
def test_an_order_by_cluster_keeps_clusters_together(program: Page, kinds: list[int]) -> None:
    alike = [[1.0 if a == b else 0.1 * abs(a - b) for b in kinds] for a in kinds]
    order = called(program, "clustered", alike)
    assert sorted(order) == [*range(len(kinds))]
    seen = [kinds[i] for i in order]
    assert len(re.findall(r"(.)\1*", "".join(map(str, seen)))) == len({*kinds})
