"""The process that listens: its socket, its signals, its end."""

import asyncio
import errno
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from fastapi import FastAPI

from vitcls.errors import Interrupted, UserError
from vitcls.serve.connections import Connection
from vitcls.serve.limits import Limits
from vitcls.serve.logs import log_event
from vitcls.serve.service import Service

# A server that was told to stop has closed its socket within this many seconds; the next one waits so long for it.
_UNTIL_FREE = 2.0
# Between the last connection and the end: what has arrived on open connections is read, and answered.
_SETTLE = 0.3
_TICK = 0.1


def bound(host: str, port: int, share_port: bool) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Args:
        host: name or address.
        port: 0: any that is free.
        share_port: whether another server of the same user may answer on the port too.

    Raises:
        UserError: the port is in use, or the address is none of this machine.
    """
    until = time.monotonic() + _UNTIL_FREE
    while True:
        try:
            return _bound(host, port, share_port)
        except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: of a name that can be none
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > until:
                raise _not_bound(host, port, error) from error
        time.sleep(0.05)


def _bound(host: str, port: int, share_port: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the one before may linger
        if share_port:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
    except BaseException:
        found.close()
        raise
    return found


def _not_bound(host: str, port: int, error: Exception) -> UserError:
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        return UserError(
            f"Port {port} of {host} is in use; stop what listens there, or give another with --port (0: any)."
        )
    return UserError(f"The server cannot listen on --host {host!r} --port {port} ({error}).")


def listen(found: socket.socket) -> str:
    """Let a bound socket listen; its address.

    Raises:
        UserError: another one does, since a moment ago.
    """
    host, port = found.getsockname()[:2]
    try:
        found.listen(2048)
    except OSError as error:
        raise _not_bound(host, port, error) from error
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, service: Service, listening: socket.socket, limits: Limits, linger: float) -> NoReturn:
    """Serve until a signal, then finish what was accepted.

    Args:
        app: the application.
        service: behind it.
        listening: the socket.
        limits: how long a request may take.
        linger: seconds in which requests are still taken after the signal, while `/ready` says no.

    Raises:
        Interrupted: by SIGTERM.
        KeyboardInterrupt: by Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        http=cast(
            Any, partial(Connection, seconds=limits.timeout)
        ),  # on h11 also where there are others: it bounds heads
        log_config=None,
        access_log=False,  # of its own: it names addresses and queries
        server_header=False,
        proxy_headers=False,  # nobody's address is used
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=round(2 * limits.timeout) + 1,
    )
    before = signal.signal(signal.SIGTERM, _interrupted)  # uvicorn raises the signal again when all is answered
    try:
        _Server(config, service, linger).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        log_event("stopped")
    raise AssertionError("only a signal ends a server")


def _interrupted(number: int, _: FrameType | None) -> NoReturn:
    raise Interrupted(number)


class _Server(uvicorn.Server):
    """uvicorn's, which says that it is about to stop before it stops."""

    def __init__(self, config: uvicorn.Config, service: Service, linger: float) -> None:
        super().__init__(config)
        self._service = service
        self._linger = linger

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log_event("about to stop")
        until = time.monotonic() + self._linger
        while time.monotonic() < until and not self.force_exit:  # which a second Ctrl-C sets
            await asyncio.sleep(_TICK)
        for server in self.servers:
            server.close()
        await asyncio.sleep(_SETTLE)
        await super().shutdown(sockets)
