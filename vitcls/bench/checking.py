"""`bench check`: what reading images for `check` costs, against decoding them and nothing else."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from vitcls.bench.source import add_source, measured_photos
from vitcls.check.reading import BATCH, read_facts
from vitcls.data.loaders import worker_count
from vitcls.data.rows import TableImages
from vitcls.data.workers import WorkerStart
from vitcls.errors import check_range
from vitcls.machine import machine


@dataclass(frozen=True)
class Checking:
    """Of reading all images, over the rounds.

    Attributes:
        decoding: seconds of decoding alone, median.
        checking: seconds of `check`'s reading, median.
        ratio: median of the second over the first in the same round.
    """

    decoding: float
    checking: float
    ratio: float


def check_parser() -> ArgumentParser:
    """The options of `bench check`; those of the data are ImageDataModule's."""
    parser = ArgumentParser(
        prog="python -m vitcls bench check",
        description="What reading images for check costs, against decoding them alone with as many processes.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    add_source(parser)
    parser.add_argument("--images", type=int, default=2000, help="most images to read, spread over the data.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each of the two reads them all.")
    parser.add_argument("--workers", type=int | None, default=None, help="processes that read, as data.num_workers.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_check(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: there is no data, or no image in it can be decoded.
    """
    workers = worker_count(options.workers)
    check_range("workers", workers, workers >= 0, "at least 0")
    photos = measured_photos(options)
    found = time_checking(TableImages(photos.split), workers, options.rounds)
    Console().print(_table(found, len(photos.split), workers, options.rounds))
    images = {"count": len(photos.split), "mean_bytes": photos.size, "mean_shape": photos.shape}
    return {"machine": machine(), "images": images, "workers": workers, "rounds": options.rounds, **asdict(found)}


def time_checking(images: TableImages, workers: int, rounds: int) -> Checking:
    """Time both in turn, so that what else the machine does falls on both; the files are in the page cache."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: _decode_all(images, workers),
        lambda: read_facts(images, workers, lambda _: None),
    )
    ways[0]()
    rows = track(range(rounds), "rounds", console=Console(stderr=True), transient=True)
    seconds = [[_seconds(way) for way in ways] for _ in rows]
    decoding, checking = zip(*seconds, strict=True)
    ratio = statistics.median(later / earlier for earlier, later in seconds)
    return Checking(statistics.median(decoding), statistics.median(checking), ratio)


class _Decoded(Dataset[tuple[int, ...]]):
    def __init__(self, images: TableImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[int, ...]:
        return self._images.pixels(position).shape


def _decode_all(images: TableImages, workers: int) -> None:
    loader = DataLoader(
        _Decoded(images), BATCH, num_workers=workers, collate_fn=list, worker_init_fn=WorkerStart(workers)
    )
    for _ in loader:
        pass


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def _table(found: Checking, count: int, workers: int, rounds: int) -> Table:
    table = Table(title=f"{count} images, {workers} workers, median of {rounds} rounds in turn")
    table.add_column("way")
    for heading in ("seconds", "images a second", "times decoding"):
        table.add_column(heading, justify="right")
    table.add_row("decoding alone", f"{found.decoding:.2f}", f"{count / found.decoding:.0f}", "1.00")
    table.add_row("check", f"{found.checking:.2f}", f"{count / found.checking:.0f}", f"{found.ratio:.2f}")
    return table
