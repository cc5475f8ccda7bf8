"""HTTP as uvicorn speaks it, without patience for a client that opens a connection and then hardly sends anything."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_SECONDS: Final = 5.0


class HurriedProtocol(HttpToolsProtocol):
    """
    Hangs up on a client that keeps it waiting for ``patience_seconds``.

    That is for a head, for the rest of a body that was answered already, and for what comes after that.
    uvicorn itself waits for ever, and so a few hundred such clients would be all it serves. A body that is needed for
    the answer and does not come is the middleware's to give up on.
    """

    patience_seconds = PATIENCE_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the rest of the body."""
        super().on_response_complete()
        if self.cycle.more_body:
            self._wait()

    def on_message_complete(self) -> None:
        """Stop waiting, or begin to wait for the next request if this one was answered before its end."""
        self._stop_waiting()
        if self.cycle.response_complete:
            self._wait()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.patience_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
