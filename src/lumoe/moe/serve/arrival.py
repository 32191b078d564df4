"""HTTP/1.1 with a limit on the time that a request takes to arrive: who sends slowly does not hold a connection."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which limits the time between requests, with a limit on each request as well.

    The time runs from the connection, or from the first byte of a later request, until the last byte of the body.
    An answer may take as long as it likes.
    """

    limit_s = 60.0
    _arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arrival = self.loop.call_later(self.limit_s, self._too_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._arrival is None:
            self._arrival = self.loop.call_later(self.limit_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _too_late(self) -> None:
        self._arrival = None
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_TIMEOUT)
        self.transport.close()


def arriving_within(seconds: float) -> type[TimedProtocol]:
    """Return the protocol for uvicorn's `http` setting with a limit of `seconds`."""
    return type("TimedProtocol", (TimedProtocol,), {"limit_s": seconds})
