"""From the bytes of an image to what the model says of it."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcls.data.decode import Pixels, decode
from vitcls.errors import BadImageError
from vitcls.serve.batching import Batcher, Probabilities
from vitcls.serve.engine import Engine
from vitcls.serve.limits import Limits, Refusal, check_image
from vitcls.serve.logs import log_failure
from vitcls.serve.metrics import Figures
from vitcls.serve.uploads import Upload

Result = TypeVar("Result")


class Service:
    """A model with the threads that work for it; it starts and stops with the server.

    Args:
        engine: the model.
        limits: of an image.
        max_batch: images that the network takes at once, at most.
        decoders: threads that decode and shrink images.
        figures: to count in.
    """

    def __init__(self, engine: Engine, limits: Limits, max_batch: int, decoders: int, figures: Figures) -> None:
        self.engine = engine
        self._limits = limits
        self._max_batch = max_batch
        self._decoders = ThreadPoolExecutor(decoders, "decode")
        self._network = ThreadPoolExecutor(1, "network")  # attribution switches the network over while it looks
        self._batcher = Batcher(engine.probabilities, self._network, max_batch, figures)
        self._task: asyncio.Task[None] | None = None
        self._is_warm = False
        self._is_draining = False
        figures.ready.set_function(lambda: self.why_not_ready is None)

    @property
    def why_not_ready(self) -> str | None:
        """Why requests had better go elsewhere; None: they need not."""
        if self._is_draining:
            return "The server is about to stop."
        return None if self._is_warm else "The server is warming up."

    @property
    def is_draining(self) -> bool:
        """Whether it is about to stop."""
        return self._is_draining

    def start(self) -> None:
        """Take requests; they wait until the network is warm."""
        self._task = asyncio.create_task(self._work())

    def drain(self) -> None:
        """Be no longer ready, and answer what comes nevertheless."""
        self._is_draining = True  # and no more: a signal's handler must not wait for what it has interrupted

    async def stop(self) -> None:
        """End the threads; all requests have been answered."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._network.shutdown(wait=False, cancel_futures=True)

    async def probabilities(self, upload: Upload) -> Probabilities:
        """(K,) float32 of an image.

        Raises:
            Refusal: 413, 415 or 422, by the image.
        """
        prepared = await self._in(self._decoders, lambda: self.engine.prepare(self._pixels(upload)))
        return await self._batcher.ask(prepared)

    async def attributed(self, upload: Upload) -> bytes:
        """Where the network looked, as a PNG of its input's size.

        Raises:
            Refusal: 413, 415 or 422, by the image.
        """
        look = self.engine.attributed
        assert look is not None, "else there is no such route"
        pixels = await self._in(self._decoders, lambda: self._pixels(upload))
        seen = await self._in(self._network, partial(look, pixels))
        return await self._in(self._decoders, lambda: _png(seen))

    async def _work(self) -> None:
        try:
            await self._warm_up()
        except Exception as error:  # noqa: BLE001 - told, and /ready goes on saying no; each request tells it too
            log_failure("warm-up", error)
        await self._batcher.work()

    async def _warm_up(self) -> None:
        """The first batches of a process are slow: memory is found, kernels are chosen."""
        blank = self.engine.prepare(np.zeros((64, 64, 3), np.uint8))
        for size in (1, self._max_batch):
            await self._in(self._network, partial(self.engine.probabilities, np.stack([blank] * size)))
        self._is_warm = True

    def _pixels(self, upload: Upload) -> Pixels:
        if upload.is_too_large:
            raise Refusal(413, f"The file has more than {self._limits.max_bytes:,} bytes.", upload.name)
        check_image(upload.name, upload.data, self._limits)
        try:
            return decode(upload.data)
        except BadImageError as error:
            raise Refusal(422, f"The image cannot be decoded: {error}.", upload.name) from error

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, work)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
