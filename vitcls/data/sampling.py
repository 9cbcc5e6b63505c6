"""Which rows each process takes, in which order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from vitcls.errors import UserError
from vitcls.types import Targets


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


class InOrder(DistributedSampler[int]):
    """The rows of predict in order, each once over all processes, without those that are done.

    Lightning's UnrepeatedDistributedSampler makes a list of all rows: of a million, 40 MB of Python's numbers. It is
    a DistributedSampler for the reason that TrainSampler has.

    Args:
        rows: N, at least `processes`.
        done: rows that need not come again, ascending; a few do where else a process would have none.
        processes: how many share the rows.
        rank: which of them this is.

    Raises:
        UserError: fewer rows than processes.
    """

    def __init__(self, rows: int, done: NDArray[np.int64] | None = None, processes: int = 1, rank: int = 0) -> None:
        check_enough(rows, processes)
        super().__init__(range(rows), num_replicas=processes, rank=rank, shuffle=False)  # type: ignore[arg-type]
        left = range(rows) if done is None else _left(rows, done, processes)
        self._own = left[rank::processes]
        self.num_samples = len(self._own)

    def __iter__(self) -> Iterator[int]:
        return map(int, self._own)


def _left(rows: int, done: NDArray[np.int64], processes: int) -> NDArray[np.int64]:
    """Those that are not done, at least one for each process."""
    left = np.setdiff1d(np.arange(rows), done, assume_unique=True)
    return np.union1d(left, done[: max(0, processes - len(left))])


class Draw(NamedTuple):
    """One training image that is drawn.

    Attributes:
        position: in the split.
        seed: of its augmentation.
        of_features: whether its features are wanted, where they are at hand.
    """

    position: int
    seed: int
    of_features: bool = False


class TrainSampler(DistributedSampler[Draw]):
    """The images of an epoch, shuffled, each with the seed of its augmentation.

    Order and augmentation follow from the run's seed and the epoch alone: whatever the number of
    workers, and after a resume as without the interruption.

    It is a DistributedSampler so that Lightning knows that it shares the rows among the processes.

    Args:
        targets: of the rows; balanced draws need one class for each, (N,) int64.
        seed: the run's.
        processes: how many share the rows.
        rank: which of them this is.
        repeats: how often an epoch draws each image, each time with another augmentation (Hoffer et al.
            2019, "Augment your batch", arXiv:1901.09335).
        balanced: whether all classes are drawn equally often, with replacement.
        feature_epochs: how many first epochs draw features.

    Raises:
        UserError: balanced draws of rows that have several classes.
    """

    def __init__(
        self,
        targets: Targets,
        seed: int,
        processes: int = 1,
        rank: int = 0,
        repeats: int = 1,
        balanced: bool = False,
        feature_epochs: float = 0,
    ) -> None:
        if balanced and targets.ndim == 2:
            raise UserError(
                "--data.sampling balanced draws by the one class of an image, but with --model.task multilabel an "
                "image has several; say --data.sampling shuffle."
            )
        super().__init__(targets, num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._targets = targets
        self._draws = len(targets) * repeats
        self._balanced = balanced
        self._feature_epochs = feature_epochs
        self.skip = 0  # draws at the start of the next epoch that were taken before an interruption
        self.num_samples = -(-self._draws // processes)  # equal numbers of steps: a few rows may come twice

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng((self.seed, self.epoch))
        positions = self._positions(random)
        positions = np.resize(positions, self.num_samples * self.num_replicas)
        seeds = random.integers(2**63, size=len(positions))
        own = slice(self.rank, None, self.num_replicas)
        # One by one: as lists, a million draws would be 72 MB of Python's numbers.
        drawn = zip(positions[own][self.skip :], seeds[own][self.skip :], strict=True)
        of_features = self.epoch < self._feature_epochs
        return (Draw(int(position), int(seed), of_features) for position, seed in drawn)

    def _positions(self, random: np.random.Generator) -> NDArray[np.int64]:
        """(draws,) positions in the order of the epoch."""
        rows = len(self._targets)
        if self._balanced:
            _, inverse, sizes = np.unique(self._targets, return_inverse=True, return_counts=True)
            return random.choice(rows, self._draws, p=1 / (len(sizes) * sizes[inverse]))
        return random.permutation(np.arange(self._draws) % rows)
