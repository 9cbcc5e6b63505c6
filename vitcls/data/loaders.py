"""DataLoaders, and how many processes decode for them."""

import logging
import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from torch.utils.data import Dataset

from vitcls.data.collate import collate
from vitcls.data.dead_workers import WatchedLoader
from vitcls.data.sampling import TrainSampler
from vitcls.data.streamed import StreamSampler
from vitcls.data.workers import WorkerStart

log = logging.getLogger(__name__)

MOST_WORKERS = 8  # beyond, a photo pipeline waits for the device or the disk, not for cores


class TimedLoader(WatchedLoader):
    """A loader that knows how long its batches were waited for.

    Attributes:
        waited: seconds from asking for the last batch until it was there.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            asked = perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited = perf_counter() - asked
            yield batch


class ResumableLoader(TimedLoader):
    """The loader of a training set: an interrupted epoch goes on with the batches that were not taken yet.

    Its sampler gives the same epoch again and skips its first `skip` rows; where Lightning put another in its place
    (trainer.overfit_batches), each epoch starts anew. Lightning keeps the state of
    a loader that has one in its checkpoints, the first process's for all of them.

    Attributes:
        taken: how many batches of the epoch were taken, before an interruption too.
    """

    taken = 0
    _interrupted: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were taken: those read ahead are not."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self.taken, **self._shape()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after an interruption."""
        self._interrupted = state

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        interrupted, self._interrupted, self.taken = self._interrupted, None, 0
        if isinstance(self.sampler, (TrainSampler, StreamSampler)):
            if interrupted is not None and interrupted["epoch"] == self.sampler.epoch:
                self.taken = interrupted["batches"]
                self._check_shape(interrupted)
            self.sampler.skip = self.taken * (self.batch_size or 1)
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def _shape(self) -> dict[str, int]:
        return {"batch_size": self.batch_size or 1, "processes": getattr(self.sampler, "num_replicas", 1)}

    def _check_shape(self, interrupted: dict[str, int]) -> None:
        before, now = (
            {name: shape[name] for name in ("batch_size", "processes")} for shape in (interrupted, self._shape())
        )
        if before != now and 0 < self.taken < len(self):
            log.warning(
                "the epoch was interrupted with batches of %d images in %d processes and goes on with %d in %d: some "
                "of its images come twice or not at all; the epochs after it are whole",
                *(*before.values(), *now.values()),
            )


def image_loader(rows: Dataset, workers: int, rank: int, **kwargs: Any) -> TimedLoader:
    """Batches of images.

    Args:
        rows: the images.
        workers: processes that decode; they stay over the epochs.
        rank: of the training process, for what they draw beside augmentation.
        kwargs: DataLoader's other arguments.
    """
    resumable = isinstance(kwargs.get("sampler"), (TrainSampler, StreamSampler))
    return (ResumableLoader if resumable else TimedLoader)(
        rows,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=WorkerStart(workers, rank),
        **{"collate_fn": collate, **kwargs},
    )


def worker_count(given: int | None, processes: int = 1) -> int:
    """Decoding processes for each training process of this machine: as given, or its share of the cores, 1..8."""
    if given is not None:
        return given
    return min(MOST_WORKERS, max(1, usable_cores() // processes))


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # honours taskset and SLURM; Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
