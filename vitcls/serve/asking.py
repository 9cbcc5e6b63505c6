"""One request for the model, from its upload to the answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from vitcls.serve.limits import Limits, Places, Refusal
from vitcls.serve.uploads import Upload, read_uploads

Result = TypeVar("Result")
Ask = Callable[[Upload], Awaitable[Result]]


class Asking:
    """Lets requests in as far as there is room for their images.

    Args:
        limits: of each.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.places = Places(limits.queue)

    async def each(self, request: Request, ask: Ask[Result], most: int | None = None) -> list[Result | Refusal]:
        """What `ask` says of every image of a request, or how it refuses it.

        Args:
            request: whose body has not been read.
            ask: about one image.
            most: how many images it may have; not given: as the limits say.

        Raises:
            Refusal: the request as a whole.
        """
        limits = self._limits if most is None else replace(self._limits, max_images=most)
        with self.places.guest() as guest:
            uploads = await read_uploads(request, limits, guest)
            request.state.images = len(uploads)
            try:
                async with asyncio.timeout(self._limits.timeout):
                    work = asyncio.gather(*(_told(ask, upload) for upload in uploads))
                    return await _while_connected(request, work)
            except TimeoutError as error:
                raise Refusal(504, f"There was no answer within {self._limits.timeout:g} seconds.") from error

    async def all(self, request: Request, ask: Ask[Result], most: int | None = None) -> list[Result]:
        """The same, of all images or of none.

        Raises:
            Refusal: the request as a whole, or the first of its images that is refused.
        """
        answers: list[Result] = []
        for found in await self.each(request, ask, most):
            if isinstance(found, Refusal):
                raise found
            answers.append(found)
        return answers


async def _told(ask: Ask[Result], upload: Upload) -> Result | Refusal:
    try:
        return await ask(upload)
    except Refusal as refusal:
        return refusal


async def _while_connected(request: Request, work: "asyncio.Future[list[Result | Refusal]]") -> list[Result | Refusal]:
    """The result of work that is given up where its client goes away, or its time is over."""
    gone = asyncio.create_task(_gone(request))
    either: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)  # until they have ended


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
