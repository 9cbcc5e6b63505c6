"""DataLoaders, and how many processes decode for them."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

from vitcls.data.collate import collate
from vitcls.data.rows import ImageRows

MOST_WORKERS = 8  # beyond, a photo pipeline waits for the device or the disk, not for cores


class TimedLoader(DataLoader):
    """A DataLoader that knows how long its batches were waited for.

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
        worker_init_fn=partial(_start_worker, rank=rank),
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


def ignore_interrupts(_worker_id: int) -> None:
    """In a worker: Ctrl-C reaches the whole process group; the main process decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start_worker(worker_id: int, rank: int) -> None:
    ignore_interrupts(worker_id)
    pl_worker_init_function(worker_id, rank)
