"""A training split that is read as a stream: which rows each process takes, in which order."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler
from xxhash import xxh3_64_hexdigest

from vitcls.data.decode import Pixels, decode
from vitcls.data.rows import ImageRows, Instead
from vitcls.data.sampling import Draw, check_enough
from vitcls.data.streams import Stream
from vitcls.errors import BadImageError, UserError
from vitcls.types import BadImage, Sample, Target

log = logging.getLogger(__name__)

# Of the rows of a process: how many may come twice so that each process can keep to its own shards.
MOST_TWICE = 0.01

# Shards that fill the buffer together: datasets are often sorted by class. 10 is the default of `datasets`,
# which for a single one waits 5 seconds at the end of a pass for nothing.
SHARDS_AT_ONCE = 10


@dataclass(frozen=True)
class StreamedSplit:
    """The rows of a stream, with their classes.

    Attributes:
        name: of the split.
        stream: where they are read.
        rows: N.
        image_column: where the images are.
        label_column: where the classes are.
        target: a value of that column -> the target of the row.
    """

    name: str
    stream: Stream
    rows: int
    image_column: str
    label_column: str
    target: Callable[[Any], Target]

    def __len__(self) -> int:
        return self.rows

    def described(self, labels: Sequence[str]) -> str:
        """How much it holds, for a person."""
        return f"{self.rows} images of {len(labels)} classes, read as a stream from {len(self.stream.files)} files"

    @property
    def fingerprint(self) -> str:
        """A digest of its columns, of how many rows there are, and of its files.

        Files at hand go by name and size, so that a folder may move; those far away by their whole URL, which
        on the Hub has the revision in it.
        """
        files = [_identity(file) for file in self.stream.files]
        return hashlib.sha256(repr((self.rows, files, self.stream.table.features)).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What `splits.json` keeps of it; its rows are all rows."""
        return {"source": f"{self.name} (streamed)", "fingerprint": self.fingerprint, "rows": []}

    def table(self) -> datasets.IterableDataset:
        """Image and class of each row, the images not decoded."""
        columns = self.stream.table.select_columns([self.image_column, self.label_column])
        return columns.cast_column(self.image_column, datasets.Image(decode=False))

    def shards_of(self, processes: int) -> list[int] | None:
        """How many rows each process has if it reads shards of its own; None where these are too uneven."""
        shards = self.stream.shards
        if processes == 1 or shards is None or len(shards) % processes or sum(shards) != self.rows:
            return None
        if self.stream.table.num_shards != len(shards):
            return None  # then a file is no shard of `datasets`
        own = np.reshape(shards, (processes, -1)).sum(axis=1).tolist()
        return own if max(own) * processes <= self.rows * (1 + MOST_TWICE) else None


def _identity(file: str) -> tuple[str, int | None]:
    path = Path(file)
    return (path.name, path.stat().st_size) if path.is_file() else (file, None)


class StreamedRow(NamedTuple):
    """One row on its way to a worker that decodes it.

    Attributes:
        data: the image's file; None where `path` tells where it is.
        path: of the file, or its name; None where the data does not say.
        target: its class, or (K,) bool.
        number: of the row in the order of the epoch, over all processes.
        seed: of its augmentation.
    """

    data: bytes | None
    path: str | None
    target: Target
    number: int
    seed: int


class StreamSampler(DistributedSampler[StreamedRow]):
    """The rows of an epoch, each once over all processes, shuffled through a buffer.

    The training process reads them, and its workers decode: order and batches are the same for any
    number of workers, and all workers have something to do with a single shard. Order and augmentation
    follow from the run's seed and the epoch.

    Where the shards can be dealt out evenly each process reads its own ones. Else each reads all and
    keeps every so manieth row, which costs as many times the transfer, but no decoding. A process that
    has fewer rows than another takes a few of its own twice, so that all take the same number of steps.

    Args:
        split: the rows.
        buffer: how many rows are held at a time to draw the next one from.
        seed: the run's.
        processes: how many share the rows.
        rank: which of them this is.
    """

    def __init__(self, split: StreamedSplit, buffer: int, seed: int, processes: int = 1, rank: int = 0) -> None:
        check_enough(len(split), processes)
        super().__init__(range(len(split)), num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._split = split
        self._buffer = buffer
        shares = split.shards_of(processes)
        self._own_shards = shares is not None
        shares = shares or [len(range(other, len(split), processes)) for other in range(processes)]
        self._own = shares[rank]
        self.num_samples = max(shares)
        self._said = False
        self.skip = 0  # rows at the start of the next epoch that were taken before an interruption

    def __iter__(self) -> Iterator[StreamedRow]:
        random = np.random.default_rng((self.seed, self.epoch, self.rank))
        seeds = (int(random.integers(2**63)) for _ in range(self.num_samples))
        numbers = range(self.rank, self.num_samples * self.num_replicas, self.num_replicas)
        drawn = zip(self._rows(), numbers, seeds, strict=False)
        return (self._row(*one) for one in islice(drawn, self.skip, None))

    def _rows(self) -> Iterator[dict[str, Any]]:
        """`num_samples` rows of this process."""
        passing = self._pass()
        taken = 0
        for taken, row in enumerate(islice(passing, self._own), 1):  # noqa: B007 - asked for below
            yield row
        if taken < self._own or next(passing, None) is not None:
            self._say_wrong_number(fewer=taken < self._own)
        if not taken:
            raise UserError(
                f"The stream of {self._split.name!r} has no rows; give data with images in it.", of_one_process=True
            )
        while taken < self.num_samples:
            for row in islice(self._pass(), self.num_samples - taken):
                taken += 1
                yield row

    def _say_wrong_number(self, fewer: bool) -> None:
        if not self._said:
            log.warning(
                "%r is said to have %d rows (by --data.train_rows, else by its metadata), but the stream has %s: each "
                "epoch takes that many. Give the right number with --data.train_rows.",
                self._split.name,
                len(self._split),
                "fewer, of which some come twice" if fewer else "more, of which some are left out",
            )
        self._said = True

    def _pass(self) -> Iterator[dict[str, Any]]:
        """Once through the rows of this process."""
        table = self._split.table()
        if self._own_shards:
            table = table.shard(num_shards=self.num_replicas, index=self.rank)
        order = int(np.random.default_rng((self.seed, self.epoch)).integers(2**31))
        at_once = min(SHARDS_AT_ONCE, table.num_shards)
        rows = iter(table.shuffle(seed=order, buffer_size=self._buffer, max_buffer_input_shards=at_once))
        return rows if self._own_shards else islice(rows, self.rank, None, self.num_replicas)

    def _row(self, row: dict[str, Any], number: int, seed: int) -> StreamedRow:
        image = row[self._split.image_column] or {"bytes": None, "path": None}
        target = self._split.target(row[self._split.label_column])
        return StreamedRow(image["bytes"], image["path"], target, number, seed)


class StreamedImages(Dataset[Sample | BadImage]):
    """Decodes and transforms the rows that a StreamSampler gives.

    Args:
        transform: (3, H, W) uint8 -> (3, S, S) uint8.
        instead: what comes out for an image that cannot be read, as in ImageRows; the `next` image is one
            of the same batch.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], instead: Instead) -> None:
        self._transform = transform
        self._instead = instead

    def __getitems__(self, batch: list[StreamedRow]) -> list[Sample | BadImage]:
        """The rows of a batch; what a DataLoader calls where it is there."""
        targets = np.array([row.target for row in batch])
        rows = ImageRows(_BatchImages(batch), self._transform, targets, self._instead)
        return [rows[Draw(position, row.seed)] for position, row in enumerate(batch)]


class _BatchImages:
    """The images of a batch, by their place in it."""

    def __init__(self, batch: list[StreamedRow]) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch)

    def pixels(self, position: int) -> Pixels:
        row = self._batch[position]
        if row.data is not None:
            return decode(row.data)
        if row.path is None:
            raise BadImageError("the row has no image")
        with fsspec.open(row.path) as file:  # datasets gives URLs, also of files inside archives
            return decode(file.read())

    def name(self, position: int) -> str:
        row = self._batch[position]
        return row.path or f"an image without a name (XXH3 {xxh3_64_hexdigest(row.data or b'')})"

    def id(self, position: int) -> int:
        return self._batch[position].number
