"""Images of several requests, classified together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitcls.serve.metrics import Figures

Probabilities = NDArray[np.float32]


class _Asked(NamedTuple):
    image: NDArray[np.uint8]
    answer: asyncio.Future[Probabilities]


class Batcher:
    """Takes what is waiting, at most so many, whenever the network is free; nothing is waited for.

    While a batch is computed the next one gathers, so batches grow with the load and one image alone is not delayed.
    How many wait is bounded where they are let in (`limits.Places`).

    Args:
        probabilities: (B, 3, S, S) uint8 -> (B, K) float32.
        thread: that runs it, one at a time.
        most: B at most.
        figures: of the batches.
    """

    def __init__(
        self,
        probabilities: Callable[[NDArray[np.uint8]], Probabilities],
        thread: Executor,
        most: int,
        figures: Figures,
    ) -> None:
        self._probabilities = probabilities
        self._thread = thread
        self._most = most
        self._figures = figures
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue()

    async def ask(self, image: NDArray[np.uint8]) -> Probabilities:
        """(3, S, S) uint8 -> (K,) float32; who is cancelled meanwhile is left out of the batch."""
        asked = _Asked(image, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(asked)
        return await asked.answer

    async def work(self) -> None:
        """Answer, batch after batch, until cancelled."""
        while True:
            batch = [one for one in await self._gathered() if not one.answer.done()]
            if batch:
                await self._answer(batch)

    async def _gathered(self) -> list[_Asked]:
        gathered = [await self._waiting.get()]
        while len(gathered) < self._most and not self._waiting.empty():
            gathered.append(self._waiting.get_nowait())
        return gathered

    async def _answer(self, batch: list[_Asked]) -> None:
        found: Sequence[Probabilities | Exception]
        try:
            found = list(await self._found(batch))
        except Exception as error:  # noqa: BLE001 - told to each that asked; the next batch may do
            found = [error] * len(batch)
        for one, row in zip(batch, found, strict=True):
            _settle(one.answer, row)

    async def _found(self, batch: list[_Asked]) -> Probabilities:
        """(B, K) float32."""
        images = np.stack([one.image for one in batch])
        loop = asyncio.get_running_loop()
        with self._figures.batch_seconds.time():
            found = await loop.run_in_executor(self._thread, self._probabilities, images)
        self._figures.batch_images.observe(len(batch))
        return found


def _settle(answer: asyncio.Future[Probabilities], found: Probabilities | Exception) -> None:
    if answer.done():  # its request has gone
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)
