"""How much of the training is spent waiting for images."""

import logging
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vitcls.data.loaders import TimedLoader, usable_cores
from vitcls.types import Batch

log = logging.getLogger(__name__)

WINDOW = 50  # steps: a few seconds of training, so that the figure follows a change
WORTH_SAYING = 0.1  # the share of waiting from which more workers or a cache would be felt
FEWEST_STEPS = 10  # fewer say more about starting up than about the data


class DataWait(Callback):
    """Logs `train/data_wait`: the share of the time of the last steps spent waiting for their batches, in 0..1.

    Waiting is the time between asking the loader for a batch and having it; a step lasts from the end of
    one batch to the end of the next. The first batch of an epoch and the first after a validation or a
    saved checkpoint are left out.

    A GPU works behind this process, and nothing here makes it stop for a measurement: while the process
    waits for images, the GPU goes on with what was queued before. So the figure is the most that the GPU
    can have been idle for want of data, and where it is near 0 the data is fast enough. With several
    training processes each measures itself, and the first one's figure is shown.

    After an epoch in which it was over a tenth, one line says so and what to do, once for each run.

    Attributes:
        images: of the steps that were measured, in this process.
        waited: seconds of them spent waiting.
        lasted: seconds that they lasted.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (waiting, whole step) in seconds
        self._of_epoch: list[tuple[float, float]] = []
        self._last_end: float | None = None
        self._advised = False
        self.images, self.waited, self.lasted = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a sum for this epoch."""
        self._of_epoch = []
        self._last_end = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation out."""
        self._last_end = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the saving out."""
        self._last_end = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure a step and log the share of the last ones."""
        loader, now = trainer.train_dataloader, perf_counter()
        if self._last_end is not None and isinstance(loader, TimedLoader):
            step = (loader.waited, now - self._last_end)
            self._recent.append(step)
            self._of_epoch.append(step)
            self.images += len(batch["labels"])
            self.waited += step[0]
            self.lasted += step[1]
            pl_module.log("train/data_wait", share(self._recent), prog_bar=True, on_step=True, on_epoch=False)
        self._last_end = now

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Give the advice where it is due."""
        if self._advised or len(self._of_epoch) < FEWEST_STEPS or share(self._of_epoch) <= WORTH_SAYING:
            return
        self._advised = True
        waited, lasted = (sum(times) for times in zip(*self._of_epoch, strict=True))
        log.warning(
            "the training waited for images during %.0f %% of the epoch's steps (%.1f of %.1f s): %s",
            100 * waited / lasted,
            waited,
            lasted,
            remedies(trainer.train_dataloader.num_workers, _cache_of(trainer.datamodule.hparams)),
        )


def share(steps: "deque[tuple[float, float]] | list[tuple[float, float]]") -> float:
    """Of (waiting, whole step) in seconds, the part that was waiting, in 0..1."""
    waited, lasted = (sum(times) for times in zip(*steps, strict=True))
    return waited / lasted if lasted else 0.0


def remedies(workers: int, cache: str | None) -> str:
    """What a user can do about waiting.

    Args:
        workers: `data.num_workers` in force.
        cache: `data.cache`; None where there can be none.
    """
    more = f"raise --data.num_workers (now {workers}, on {usable_cores()} cores)"
    kept = {
        "none": ", or keep a cache with --data.cache jpeg",
        "jpeg": ", or keep a larger cache with --data.cache raw",
    }
    return more + kept.get(cache or "", "")


def _cache_of(data: Mapping[str, Any]) -> str | None:
    return None if data.get("streaming") else data.get("cache", "none")
