"""HTML for people: templates, the files beside them, and the headers that keep a page to itself.

templates/NAME.html ── html_response ──► a page of this server, which may load nothing but what lies in static/
static/NAME         ── routes ─────────► /static/NAME, which holds no data, so that it needs no key
"""

import functools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

STATIC = "/static"
FOLDER = Path(__file__).parent / "static"

# What a page may do: run and show what this server has in static/, and ask this server. Scripts and styles in the page
# itself do nothing, and no other page may frame it.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Asked for again each time, by its ETag: after an update nobody sees half of the old page.
    "cache-control": "no-cache",
}


def html_response(template: str, headers: dict[str, str] | None = None, **values: Any) -> Response:
    """Fill in a template; raises `jinja2.UndefinedError` for a value that it misses."""
    return HTMLResponse(render(template, **values), headers={**HEADERS, **(headers or {})})


def render(template: str, **values: Any) -> str:
    """Return a template that is filled in."""
    return _environment().get_template(template).render(**values)


def routes(names: Collection[str] = ()) -> list[Route]:
    """Return the route of the files in static/: of these names only, or of all for none."""
    files = StaticFiles(directory=FOLDER)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        response = await files.get_response("" if names and name not in names else name, request.scope)  # or raises 404
        response.headers.update(HEADERS)
        return response

    return [Route(f"{STATIC}/{{name}}", static)]


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("embellama_server.web"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["prose"] = _prose
    return environment


def _prose(text: str) -> Markup:
    """Write what stands between backquotes as code."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))
