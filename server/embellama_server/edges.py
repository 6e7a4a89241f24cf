"""What lies between clients and the app: the sub-path of a proxy, proxies themselves, web pages of other origins.

a request ── KnownPaths ──► behind_proxies ──► (access log) ──► for_origins ──► the app
"""

import ipaddress
from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from embellama.errors import ConfigError

# What pages of other origins may do. PUT and DELETE change what is served: with them, any page that an administrator
# looks at could do so from his browser.
CORS_METHODS = ("GET", "HEAD", "POST")

# How long a browser may go by what it was told; none does so for longer than two hours.
CORS_MAX_AGE_S = 7200


def known_path(path: str, root_path: str) -> str:
    """Return a path as the app's routes are called: without `root_path`, and without a slash at its end."""
    if root_path and f"{path}/".startswith(f"{root_path}/"):  # a proxy that does not cut it off
        path = path[len(root_path) :] or "/"
    return path[:-1] if path.endswith("/") and path != "/" else path


class KnownPaths:
    """An ASGI application around another, which is given `known_path`: whoever decides by paths sees one for each."""

    def __init__(self, app: ASGIApp, root_path: str, routes: Iterable[str]):
        """Prepare for a root path; raises `ConfigError` if one of `routes` begins with it, and would be cut."""
        for route in routes:
            if root_path and f"{route}/".startswith(f"{root_path}/"):
                raise ConfigError(f"root_path is {root_path!r}: so begins {route}, a path of the server's own")
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = known_path(scope["path"], self._root_path)
        await self._app(scope, receive, send)


def behind_proxies(app: ASGIApp, *, trusted: Iterable[str]) -> ASGIApp:
    """Have a request's scope tell the client and scheme that a trusted proxy forwards for: a step."""
    return ProxyHeadersMiddleware(app, [each for network in trusted for each in _also_mapped(network)])  # type: ignore


def for_origins(app: ASGIApp, *, origins: Iterable[str]) -> ASGIApp:
    """Let web pages of other origins ask, and read every header of the answer, an error's too: a step."""
    return CORSMiddleware(
        app,
        allow_origins=tuple(origins),
        allow_methods=CORS_METHODS,
        allow_headers=("*",),
        expose_headers=("*",),
        max_age=CORS_MAX_AGE_S,
    )


def _also_mapped(network: str) -> list[str]:
    """Return a network and, if it is of IPv4, how a socket of both families writes it: ``::ffff:10.0.0.0/104``."""
    known = ipaddress.ip_network(network)
    if known.version == 6:
        return [network]
    return [network, f"::ffff:{known.network_address}/{96 + known.prefixlen}"]
