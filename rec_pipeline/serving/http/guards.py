"""What stands before every route: sizes, the rate of a client, the token, the time a request may take, the count."""

import asyncio
import hmac
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import HTTPException
from pydantic import SecretStr

from rec_pipeline.serving.http.problems import problem
from rec_pipeline.serving.http.rates import Rates
from rec_pipeline.serving.http.telemetry import Telemetry

MAX_BODY_BYTES: Final = 64 * 1024
MAX_HEADER_BYTES: Final = 8 * 1024
REQUEST_SECONDS: Final = 5.0
OPEN_PATHS: Final = ("/", "/health/live", "/health/ready", "/openapi.json")
OPEN_PREFIX: Final = "/static/"
HEALTH_PREFIX: Final = "/health/"
HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"cache-control", b"no-store"),
)

App = Callable[[Any, Any, Any], Awaitable[None]]


class Guards:
    """
    ASGI middleware; refuses in the form of problems.

    Parameters
    ----------
    app
        What it stands before.
    token
        Bearer token every path but health, page and OpenAPI asks for; None for an open service.
    telemetry
        Counts requests by route and status.
    rates
        What each client may ask, by its address; health is free. None for no limit.
    """

    def __init__(self, app: App, token: SecretStr | None, telemetry: Telemetry, rates: Rates | None = None) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token.get_secret_value()}".encode()
        self._telemetry, self._rates = telemetry, rates

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_with_headers(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send_with_headers)
            else:
                await self._within_limits(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._telemetry.requests.labels(route, str(status)).inc()

    def _refusal(self, scope: Any) -> Any:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return problem(431, f"The headers may have {MAX_HEADER_BYTES} bytes.")
        if self._rates is not None and not scope["path"].startswith(HEALTH_PREFIX):
            wait = self._rates.wait_seconds((scope.get("client") or ("",))[0])
            if wait:
                return problem(429, "Too many requests.", {"Retry-After": str(math.ceil(wait))})
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return problem(413, f"The body may have {MAX_BODY_BYTES} bytes.")
        if self._expected is None or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_PREFIX):
            return None
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return problem(401, "A bearer token is needed.", {"WWW-Authenticate": "Bearer"})
        return None

    async def _within_limits(self, scope: Any, receive: Any, send: Any) -> None:
        n_bytes, has_begun = 0, False

        async def limited() -> Any:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"The body may have {MAX_BODY_BYTES} bytes.")
            return message

        async def noted(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._app(scope, limited, noted)
        except TimeoutError:
            if not has_begun:
                await problem(503, "The request took too long.", {"Retry-After": "1"})(scope, receive, send)
