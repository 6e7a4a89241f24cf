"""The page that a browser shows at `/`: what the server does, and what it can do.

GET / ──┬── a browser ──► templates/page.html ──► a section for each of `PANELS`, each with a module in static/
        └── others ─────► that the server is there

The page holds no data, so that it needs no key; its scripts ask for one, and send it with what they ask.
"""

from collections.abc import Iterable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from embellama import __version__
from embellama_server.accept import best_type
from embellama_server.state import ServerState
from embellama_server.web import html


class Panel(NamedTuple):
    """A part of the page: ``templates/panels/NAME.html`` and ``static/NAME.js``."""

    name: str
    title: str


PANELS = (
    Panel("pool", "Pool"),
    Panel("playground", "Playground"),
    Panel("similarity", "Similarity"),
    Panel("bench", "Bench"),
)

# What /docs shows, where the browser's own request would have no key.
KEYED_DOCS = Panel("docs", "API")

# Of `docs`, which is there without the page too.
DOCS_FILES = ("icon.svg", "style.css")


def routes(state: ServerState) -> list[Route]:
    """Return the routes of the page and of its files."""
    root_path = state.config.root_path
    has_keys = bool(state.config.keys_file)

    async def root(request: Request) -> Response:
        """Answer a browser with the page, and those who ask whether there is a server at all, as Ollama does."""
        if not state.config.page:
            return Response("embellama is running", media_type="text/plain")
        vary = {"vary": "accept"}
        if not wants_page(request.scope):
            return Response("embellama is running", media_type="text/plain", headers=vary)
        # Relative, unless it is known better: a proxy may serve it below a path that we were not told.
        base = f"{root_path}/" if root_path else ""
        return html.html_response(
            "page.html",
            vary,
            base=base,
            version=__version__,
            panels=(*PANELS, KEYED_DOCS) if has_keys else PANELS,
            has_keys=has_keys,
        )

    return [
        # POST is a dialect's, and does not come here; `allow` names it.
        Route("/", root, methods=["GET", "POST"]),
        *html.routes(() if state.config.page else DOCS_FILES),
    ]


def wants_page(scope: Scope) -> bool:
    """Tell whether a request for `/` likes HTML better than a line of text."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    accept = ",".join(value.decode("latin-1").lower() for name, value in headers if name == b"accept")
    return best_type(accept, ("text/plain", "text/html")) == "text/html"


def needs_no_key(scope: Scope) -> bool:
    """Tell whether a request is for the page itself or one of its files."""
    path: str = scope["path"]
    if scope["method"] not in ("GET", "HEAD"):
        return False
    return path.startswith(f"{html.STATIC}/") or (path == "/" and wants_page(scope))
