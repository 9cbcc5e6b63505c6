"""DataLoaders, and how many processes decode for them."""

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from vitcls.data.collate import collate
from vitcls.data.dead_workers import WatchedLoader
from vitcls.data.rows import ImageRows
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


def image_loader(rows: ImageRows, workers: int, rank: int, **kwargs: Any) -> TimedLoader:
    """Batches of images.

    Args:
        rows: the images.
        workers: processes that decode; they stay over the epochs.
        rank: of the training process, for what they draw beside augmentation.
        kwargs: DataLoader's other arguments.
    """
    return TimedLoader(
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
