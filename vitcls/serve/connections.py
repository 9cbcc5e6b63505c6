"""Connections: one on which no request arrives does not stay."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's, which by itself waits for ever for the head of a request, and for a body that was refused.

    Args:
        seconds: in which a request has to begin, from its first byte to the end of its head.
        uvicorn: what uvicorn gives to its own.
    """

    def __init__(self, *, seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._seconds = seconds
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; only a whole head ends the waiting."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._wait_no_longer()

    def _wait(self) -> None:
        """As long as there is nothing to answer; uvicorn's own timer begins anew with each byte."""
        if self.conn.our_state not in (h11.IDLE, h11.DONE):
            self._wait_no_longer()
        elif self._end is None and not self.transport.is_closing():
            self._end = self.loop.call_later(self._seconds, self.timeout_keep_alive_handler)

    def _wait_no_longer(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
