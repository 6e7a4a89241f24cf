"""`KeyCheck`: the step that lets nobody by without a key, nor beyond the limits of one.

request ──► who asks: 401 ──► admin's paths: 403 ──► requests a minute, open at once: 429 ──► the app
                                                                                         │
            Caller, allowed models, the name for the access log: in the scope ◄──────────┘

The app then refuses what the key may not use: models (403, `ServerState.model`), tokens (429, `ChargingBackend`).
"""

import contextlib

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embellama.backend import Caller
from embellama.errors import ServiceError
from embellama_server.dialects import dialect_at
from embellama_server.exchange import CALLER, Exchange
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import Account
from embellama_server.problems import InvalidKey, NotAllowed, RateLimited, problem_of
from embellama_server.reply import Reply, dumps
from embellama_server.state import ALLOWED_MODELS, ServerState
from embellama_server.telemetry.access import ACCESS_FIELDS
from embellama_server.web import page, pages

# Paths for balancers and orchestrators, which have no key.
OPEN_PATHS = ("/livez", "/readyz")

# Paths, and all below them, that tell of the server or change it.
ADMIN_PATHS = ("/metrics", "/docs", "/openapi.json", "/admin")


class KeyCheck:
    """An ASGI application around another, which gets what keys allow."""

    def __init__(self, app: ASGIApp, state: ServerState, keyring: Keyring):
        self._app, self._state, self._keyring = app, state, keyring
        self._has_page = state.config.page
        self._open_paths = (*OPEN_PATHS, "/metrics") if state.config.open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope):
            await self._app(scope, receive, send)
        elif scope["path"] == "/health":
            scope[pages.HEALTH_DETAILS] = self._is_admin(scope)
            await self._app(scope, receive, send)
        else:
            await self._check(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in self._open_paths or (self._has_page and page.needs_no_key(scope))

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            account = self._account(scope)
        except (InvalidKey, NotAllowed) as error:
            await self._refuse(error, scope, receive, send)
            return

        entry = account.entry
        scope[CALLER] = Caller(entry.name, entry.share_cache)

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *account.headers()]
            await send(message)

        with contextlib.ExitStack() as stack:
            try:
                await account.charge_request()
                stack.enter_context(account.open())
            except (RateLimited, ServiceError) as error:
                await self._refuse(error, scope, receive, telling)
                return
            if entry.models:
                scope[ALLOWED_MODELS] = entry.models
            await self._app(scope, receive, telling)

    def _account(self, scope: Scope) -> Account:
        """Find who asks, for the access log too; raises `InvalidKey`, or `NotAllowed` if the path is not for him."""
        account = self._keyring.account(scope["headers"])
        if (fields := scope.get(ACCESS_FIELDS)) is not None:
            fields["key"] = account.entry.name
        path: str = scope["path"]
        if not account.entry.admin and any(path == each or path.startswith(f"{each}/") for each in ADMIN_PATHS):
            raise NotAllowed(f"{path} is for keys with admin, and {account.entry.name!r} has not")
        return account

    def _is_admin(self, scope: Scope) -> bool:
        try:
            return self._account(scope).entry.admin
        except InvalidKey:
            return False

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the shape of the path's dialect, and count it."""
        found = dialect_at(scope["path"]) if scope["method"] == "POST" else None
        if not found:
            await pages.error_response(Request(scope), error)(scope, receive, send)
            return
        dialect, path = found
        problem, headers = problem_of(error)
        with Exchange(self._state, dialect.operation, path, scope, send) as exchange:
            exchange.failed(problem)
            body = dumps(dialect.refuse(problem))
            await exchange.send(Reply(iter([body]), headers=headers, status=problem.status), [body])
