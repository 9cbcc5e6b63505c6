"""Which rows each process takes, in batches."""

from collections.abc import Iterator

import numpy as np

from vitcls.errors import UserError


def check_enough(rows: int, processes: int) -> None:
    """Refuse to share fewer rows than there are processes.

    Raises:
        UserError: some process would have nothing, and the others would wait for it.
    """
    if rows < processes:
        raise UserError(
            f"{rows} images cannot be shared among {processes} processes; use fewer devices "
            "(--trainer.devices) or more images."
        )


class SharedEvenly:
    """Every row exactly once over all processes, in the same number of batches on each.

    Torch's DistributedSampler repeats rows until the processes have equally many: 31 images on two
    processes count 32, and the metrics with them. Leaving the repeats out gives processes unequal
    numbers of batches, and a network with buffers (batch norm) then hangs in DDP's broadcast. Here
    the number of batches is equal and their sizes differ by at most one.

    Not a torch BatchSampler on purpose: Lightning would replace it where
    `trainer.use_distributed_sampler` is on, and refuses this one aloud instead.

    Args:
        rows: N, at least `processes`.
        batch_size: B, the largest batch; B + 1 where a process would else have an empty one.
        processes: how many share the rows.
        rank: which of them this is.

    Raises:
        UserError: fewer rows than processes.
    """

    def __init__(self, rows: int, batch_size: int, processes: int, rank: int) -> None:
        check_enough(rows, processes)
        own = np.arange(rank, rows, processes)
        most = -(-rows // processes)
        self._batches = np.array_split(own, min(-(-most // batch_size), rows // processes))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)
