"""`bench memory`: what the metadata of many rows costs the main process, and each that decodes."""

import csv
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import UserError, check_range
from vitcls.machine import machine
from vitcls.models.classifier import ViTClassifier
from vitcls.trainer_options import QUIET

FEW = 1000  # rows of the comparison: what is left when they are taken off is the rows' own
WORKERS = (2, 4)
BATCHES = 4  # that each worker reads before it is measured
_CLASSES, _PHOTOS, _SIDE = 100, 5, 64
_ROLLUP = "smaps_rollup"


@dataclass(frozen=True)
class Memory:
    """Of a process, in MB (1e6 bytes).

    Attributes:
        rss: all that lies in memory, shared or not.
        pss: of pages that are shared, only this process' part.
        uss: pages of this process alone, files that only it has mapped included.
        own: anonymous memory that is not shared with the process it was forked from. This is what counts:
            the system takes pages of a mapped Arrow file back when it needs the room.
    """

    rss: float
    pss: float
    uss: float
    own: float


@dataclass(frozen=True)
class Cost:
    """What a number of rows costs.

    Attributes:
        rows: how many.
        before: of the main process, before they were opened.
        opened: afterwards, splits and images at hand.
        read: after batches were read without workers.
        workers: of each worker after they were read, where there are as many as the key says.
    """

    rows: int
    before: Memory
    opened: Memory
    read: Memory
    workers: dict[int, list[Memory]]


def memory_parser() -> ArgumentParser:
    """The options of `bench memory`."""
    parser = ArgumentParser(
        prog="python -m vitcls bench memory",
        description="What many rows of metadata cost in memory. The rows are made up: a CSV of paths and classes.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_memory(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: too few rows, or a system that does not tell what a process has for itself.
    """
    check_range("rows", options.rows, options.rows >= FEW, f"at least {FEW}")
    memory_of("self")
    with tempfile.TemporaryDirectory() as folder, _cache_in(Path(folder) / "cache"):
        costs = [cost_of(rows, Path(folder)) for rows in (FEW, options.rows)]
    print(_sentence(*costs))
    Console().print(_table(costs[-1]))
    return {"machine": machine(), "few": asdict(costs[0]), "many": asdict(costs[1]), "of_the_rows": own_of_rows(*costs)}


def cost_of(rows: int, folder: Path) -> Cost:
    """Open that many made-up rows by the ImageDataModule, and read batches of them."""
    table = write_rows(rows, folder)
    data = _data(table)
    before = memory_of("self")
    data.setup("fit")
    opened = memory_of("self")
    _reading(data, 0)
    read = memory_of("self")  # before workers share its pages
    return Cost(rows, before, opened, read, {workers: _reading(data, workers) for workers in WORKERS})


def write_rows(rows: int, folder: Path) -> Path:
    """A CSV of paths and classes, whose paths are a handful of small JPEGs by many names."""
    photos = folder / f"photos{rows}"
    for number in range(_PHOTOS):
        (photos / f"class_{number:04}").mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"class_{number:04}" / "photograph.jpg")
    file = folder / f"rows{rows}.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(("path", "label"))
        for row in track(range(rows), f"{rows:,} rows", console=Console(stderr=True), transient=True):
            # `./` as often as the row says makes the paths differ in length as those of real folders do.
            path = f"photos{rows}/{'./' * (row % 16)}class_{row % _PHOTOS:04}/photograph.jpg"
            writer.writerow((path, f"class_{row % _CLASSES:04}"))
    return file


def memory_of(process: int | str) -> Memory:
    """Of a process by its number, or of `self`.

    Raises:
        UserError: this system has no /proc/PID/smaps_rollup.
    """
    try:
        lines = Path(f"/proc/{process}/{_ROLLUP}").read_text(encoding="ascii").splitlines()[1:]
    except OSError as error:
        raise UserError(
            f"bench memory needs /proc/PID/{_ROLLUP}, which Linux has since 4.14 ({error}); other systems do not tell "
            "what a process has for itself."
        ) from error
    found = {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in (line.partition(":") for line in lines)}
    uss = found["Private_Clean"] + found["Private_Dirty"]
    return Memory(found["Rss"], found["Pss"], uss, found["Private_Dirty"])


def own_of_rows(few: Cost, many: Cost) -> dict[str, Any]:
    """Own memory in MB that the many rows take: of the main process, and of the largest worker more than with few."""
    return {
        "main": many.read.own - many.before.own,
        "workers": {
            number: max(one.own for one in many.workers[number]) - max(one.own for one in few.workers[number])
            for number in WORKERS
        },
    }


def _data(table: Path) -> ImageDataModule:
    """As fit has it: with a Trainer and a network, which is tiny."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    model = ViTClassifier(architecture={"model_type": "vit", "image_size": 32, "patch_size": 16, **sizes})
    data = ImageDataModule(train_files=str(table))
    trainer = Trainer(accelerator="cpu", **QUIET)
    data.trainer = model.trainer = trainer
    trainer.strategy.connect(model)
    return data


def _reading(data: ImageDataModule, workers: int) -> list[Memory]:
    """Of each worker, when they have read."""
    data.hparams["num_workers"] = workers
    known = set(multiprocessing.active_children())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores, on purpose
        batches = iter(data.train_dataloader())
        next(batches)
    for _ in islice(batches, BATCHES * max(1, workers) - 1):
        pass
    started = [child for child in multiprocessing.active_children() if child not in known]
    return [memory_of(child.pid or "self") for child in started]


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Arrow files of made-up rows do not belong among the user's."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _sentence(few: Cost, many: Cost) -> str:
    own = own_of_rows(few, many)
    of_workers = ", ".join(f"{value:.0f} MB with {number}" for number, value in own["workers"].items())
    return (
        f"{many.rows:,} rows take {own['main']:.0f} MB of the main process for itself; a worker has more than with "
        f"{few.rows:,} rows: {of_workers} workers"
    )


def _table(cost: Cost) -> Table:
    table = Table(title=f"{cost.rows:,} rows, MB; own: anonymous and not shared, without mapped Arrow files")
    table.add_column("process")
    for field in fields(Memory):
        table.add_column(field.name, justify="right")
    rows = [("main, before", cost.before), ("main, opened", cost.opened), ("main, has read", cost.read)]
    for number in WORKERS:
        rows += [(f"worker {i + 1} of {number}", one) for i, one in enumerate(cost.workers[number])]
    for name, memory in rows:
        table.add_row(name, *(f"{value:.0f}" for value in asdict(memory).values()))
    return table
