"""DataLoaders, and how many processes decode for them."""

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any, cast

from vitcls.data.collate import collate
from vitcls.data.dead_workers import WatchedLoader
from vitcls.data.rows import ImageRows
from vitcls.data.sampling import TrainSampler
from vitcls.data.streamed import StreamedImages, StreamSampler
from vitcls.data.workers import WorkerStart

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

    Its sampler must give the same epoch again and skip its first `skip` rows. Lightning keeps the state of
    a loader that has one in its checkpoints, the first process's for all of them.
    """

    _taken = 0  # batches of this epoch
    _interrupted: tuple[int, int] = (-1, 0)  # epoch, and the batches of it that were taken

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were taken: those read ahead are not."""
        return {"epoch": self._sampler.epoch, "batches": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after an interruption."""
        self._interrupted = state["epoch"], state["batches"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        epoch, batches = self._interrupted
        self._taken = batches if epoch == self._sampler.epoch else 0
        self._interrupted = (-1, 0)
        self._sampler.skip = self._taken * (self.batch_size or 1)
        for batch in super().__iter__():
            self._taken += 1
            yield batch

    @property
    def _sampler(self) -> TrainSampler | StreamSampler:
        return cast(TrainSampler | StreamSampler, self.sampler)


def image_loader(rows: ImageRows | StreamedImages, workers: int, rank: int, **kwargs: Any) -> TimedLoader:
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
        collate_fn=collate,
        worker_init_fn=WorkerStart(workers, rank),
        **kwargs,
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
