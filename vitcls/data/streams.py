"""Rows that are read while they are iterated over, and never kept whole."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import datasets
import fsspec
import pyarrow.parquet as pq
from pyarrow.dataset import ParquetFragmentScanOptions

from vitcls.errors import UserError

# Arrow would read far ahead in each of the shards that are open: with ten of 100 MB each, in row groups of 10 MB,
# a process held 2.2 GB; without, 1.5 GB, and read faster. (A buffer of 1,000 of these images is 0.1 GB.)
LEAN_SCAN = ParquetFragmentScanOptions(pre_buffer=False)

_AT_ONCE = 16  # footers that are asked for at the same time: each is one short wait for the network


@dataclass(frozen=True)
class Stream:
    """The rows of one split, in shards.

    Attributes:
        table: the rows; can be iterated over any number of times.
        files: the shards, in order: paths or URLs.
        said: how many rows the dataset's card says there are, if it says so.
    """

    table: datasets.IterableDataset
    files: Sequence[str]
    said: int | None = None

    @cached_property
    def shards(self) -> list[int] | None:
        """How many rows each shard has, by the footers of its parquet files; None of files of other kinds.

        Raises:
            UserError: a file cannot be read.
        """
        if not self.files or not all(PurePosixPath(file).suffix.lower() == ".parquet" for file in self.files):
            return None
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                return list(pool.map(_rows_of, self.files))
        except (OSError, ValueError) as error:
            raise UserError(f"The footers of the {len(self.files)} parquet files cannot be read ({error}).") from error

    @property
    def rows(self) -> int | None:
        """How many rows there are, as far as the metadata tell."""
        if self.said is not None:
            return self.said
        return None if self.shards is None else sum(self.shards)


def _rows_of(file: str) -> int:
    with fsspec.open(file) as content:
        return pq.read_metadata(content).num_rows
