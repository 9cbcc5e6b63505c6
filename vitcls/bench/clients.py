"""Clients that ask a server without pause, each over one connection."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_BOUNDARY = "vitcls-bench"
_PATIENCE = 120.0  # seconds for an answer; what takes longer hangs


class Photo(NamedTuple):
    """An image file to send.

    Attributes:
        name: of it.
        data: its bytes.
    """

    name: str
    data: bytes


class Reply(NamedTuple):
    """What a server said.

    Attributes:
        status: of HTTP.
        headers: by their names in lower case.
        body: bytes of it.
    """

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Load:
    """What came of a load.

    Attributes:
        seconds: of each request that was answered with 200.
        statuses: how many answers had which.
        wrong: answers with 200 that are not the right ones.
        broken: requests that found no server, or were cut off before their answer.
        ids: of the requests that were answered with 200, as the server named them.
        duration: seconds of all.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    broken: int = 0
    ids: list[str] = field(default_factory=list)
    duration: float = 0.0


class Clients:
    """So many at once.

    Args:
        address: of the server, such as `http://127.0.0.1:8000`.
        photos: asked about in turn.
        is_right: whether an answer about a photo, as JSON, is the right one.
        pauses_after_refusal: whether `Retry-After` is obeyed.

    Attributes:
        load: what has come of it so far.
    """

    def __init__(
        self,
        address: str,
        photos: Sequence[Photo],
        is_right: Callable[[Photo, Any], bool],
        pauses_after_refusal: bool = True,
    ) -> None:
        place = urlsplit(address)
        self._place = place.hostname, place.port
        self._requests = cycle([(photo, request_of(photo)) for photo in photos])
        self._is_right = is_right
        self._pauses = pauses_after_refusal
        self.load = Load()

    async def ask(self, clients: int, goes_on: Callable[[], bool]) -> Load:
        """Ask with so many clients, each until `goes_on` says no and its last answer is there."""
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(goes_on))
        self.load.duration = time.perf_counter() - start
        return self.load

    async def _client(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            try:
                reader, writer = await asyncio.open_connection(*self._place)
            except OSError:
                self.load.broken += 1
                await asyncio.sleep(0.05)
                continue
            try:
                await self._talk(reader, writer, goes_on)
            except (OSError, asyncio.IncompleteReadError):
                self.load.broken += 1
            finally:
                writer.close()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, goes_on: Callable[[], bool]
    ) -> None:
        """One connection, until its end or the clients'."""
        while goes_on():
            photo, request = next(self._requests)
            start = time.perf_counter()
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(_PATIENCE):
                reply = await read_reply(reader)
            self._note(photo, reply, time.perf_counter() - start)
            if reply.status == 429 and self._pauses:
                await asyncio.sleep(float(reply.headers["retry-after"]))
            if reply.headers.get("connection") == "close":
                return

    def _note(self, photo: Photo, reply: Reply, seconds: float) -> None:
        self.load.statuses[reply.status] += 1
        if reply.status == 200:
            self.load.seconds.append(seconds)
            self.load.ids.append(reply.headers["x-request-id"])
            self.load.wrong += not self._is_right(photo, json.loads(reply.body))


def request_of(photo: Photo) -> bytes:
    """The whole request that asks about a photo."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{photo.name}"\r\n\r\n'
    body = head.encode() + photo.data + f"\r\n--{_BOUNDARY}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: {len(body)}\r\n"
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n".encode() + body


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """The next answer of a connection.

    Raises:
        asyncio.IncompleteReadError: the connection ended before it.
    """
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Reply(int(first.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0))))
