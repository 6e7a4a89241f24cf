"""Take pictures of the page for the documents; scripts/screenshots runs it.

a server of the default model ◄── requests of all sizes, some wrong ──── for as long as the lines show
        └──► Chromium, in each of `SHOTS` ──► docs/images/page-NAME.png
"""

import argparse
import contextlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from playwright.sync_api import Page, sync_playwright

from benchmarks import texts
from tests.conftest import BIN, ROOT, Server, run, running_server
from tests.programs import program

# Larger ones make the repository heavy.
MOST_BYTES = 150_000


def at_once(page: Page) -> None:
    """Do nothing: the panel shows itself."""
    page.wait_for_timeout(2500)


SENTENCES = """A cat sleeps on the sofa.
The kitten naps in the sun.
Two dogs run through the park.
A puppy plays outside.
Stocks fell sharply on Monday.
The market lost two percent.
Investors sold their shares.
The bank raised its rates.
She bakes bread every morning.
The soup needs more salt.
He cooks pasta for his friends.
A recipe for apple pie.
The telescope found a new planet.
Astronomers watched the eclipse.
A rocket left for the moon.
Stars shine at night.""".splitlines()


def embed(page: Page) -> None:
    """Embed some texts, one of them too long."""
    long = "A text that has more tokens than the model reads is cut, and what was cut is struck out."
    page.get_by_label("Too long").select_option("tokens")
    page.get_by_label("Tokens to keep").fill("14")
    page.locator("#playground textarea").fill(f"{SENTENCES[0]}\n{SENTENCES[12]}\n{long}\nΗ γάτα κοιμάται.")
    page.get_by_role("button", name="Embed").click()
    page.locator("#playground .answers").scroll_into_view_if_needed()


def compare(page: Page, view: str, given: list[str]) -> None:
    """Compare texts in a view."""
    page.get_by_label("View").select_option(view)
    page.locator("#similarity textarea").evaluate(
        "(area, text) => { area.value = text; area.dispatchEvent(new Event('input', { bubbles: true })); }",
        "\n".join(given),
    )
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Download CSV").scroll_into_view_if_needed()


def heat_map(page: Page) -> None:
    """Compare sentences each with each, sorted by cluster."""
    compare(page, "Heat map", sorted(SENTENCES[:12]))
    page.get_by_label("Sort by cluster").check()
    page.get_by_role("application").evaluate("(map) => map.parentElement.scrollIntoView({ block: 'start' })")


def query(page: Page) -> None:
    """Rank sentences by a query."""
    page.get_by_label("View").select_option("Query")
    page.get_by_role("textbox", name="Query").fill("Where do cats sleep?")
    compare(page, "Query", SENTENCES)
    page.get_by_role("textbox", name="Query").evaluate(
        "(field) => field.parentElement.scrollIntoView({ block: 'start' })"
    )


def text_map(page: Page) -> None:
    """Lay out many texts in a plane, and select some of them."""
    kinds = [("cat", "dog", "kitten", "horse"), ("bank", "stock", "bond", "market"), ("bread", "cheese", "soup", "pie")]
    some = random.Random(1)
    given = [" ".join(some.sample(kind, 2) + some.sample(SENTENCES[0].split(), 2)) for kind in 150 * kinds]
    compare(page, "Map", given)
    page.get_by_label("Select texts with").fill("kitten")
    page.get_by_role("application").evaluate("(map) => map.parentElement.scrollIntoView({ block: 'start' })")


class Shot(NamedTuple):
    """A picture: of which panel, in a window of which size and scheme, after what was done there."""

    name: str
    panel: str
    size: tuple[int, int] = (1280, 900)
    scheme: Any = "light"
    prepare: Callable[[Page], None] = at_once


SHOTS = [
    Shot("pool", "pool"),
    Shot("pool-dark", "pool", scheme="dark"),
    Shot("pool-phone", "pool", (390, 844), "dark"),
    Shot("playground", "playground", (1280, 1200), prepare=embed),
    Shot("heat", "similarity", (860, 860), prepare=heat_map),
    Shot("query", "similarity", (1280, 800), prepare=query),
    Shot("map", "similarity", (1280, 900), "dark", prepare=text_map),
    Shot("bench", "bench", (1280, 760)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of the page.")
    parser.add_argument("--minutes", type=float, default=10, help="of requests before (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", help="one of " + ", ".join(shot.name for shot in SHOTS))
    options = parser.parse_args()
    model = str(ROOT / "models" / "minilm.gguf")
    measured = run(BIN / "embellama", "bench", model)
    assert measured.returncode == 0, measured.stderr
    flags = ("--model-path", model, "--workers", "2")
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "log", *flags) as server, asked(server):
        time.sleep(60 * options.minutes)
        for shot in SHOTS:
            if options.only in (None, shot.name):
                take(server, shot)


def take(server: Server, shot: Shot) -> None:
    """Take one picture; raises `SystemExit` if it is too large."""
    path = ROOT / "docs" / "images" / f"page-{shot.name}.png"
    width, height = shot.size
    with (
        sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
        ) as browser,
    ):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=shot.scheme)
        page.goto(f"{server.url}/#{shot.panel}")
        shot.prepare(page)
        page.screenshot(path=path)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; the limit is {MOST_BYTES}")


@contextlib.contextmanager
def asked(server: Server) -> Iterator[None]:
    """Have clients ask until the block ends: more and fewer of them, as it is by day and by night."""
    ended = threading.Event()
    clients = [threading.Thread(target=_ask, args=(server, ended, number)) for number in range(4)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def _ask(server: Server, ended: threading.Event, number: int) -> None:
    choose, sentences = random.Random(number), texts.sentences()
    pause_s = 0.3
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while not ended.is_set():
            pause_s = min(max(pause_s * choose.uniform(0.9, 1.11), 0.05), 0.6)
            model = "gpt-4" if choose.random() < 0.003 else "minilm"
            n_texts = choose.choice([1, 1, 1, 2, 4, 16])
            input = [" ".join(choose.sample(sentences, choose.choice([1, 1, 1, 4]))) for _ in range(n_texts)]
            if choose.random() < 0.3:
                input = sentences[:n_texts]  # known already
            http.post("/v1/embeddings", json={"model": model, "input": input})
            ended.wait(pause_s * choose.expovariate(1))


if __name__ == "__main__":
    main()
