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
