"""`bench data`: images a second of one thread, and how far our pixels are from Pillow's."""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from vitcls.bench.loading import (
    Difference,
    Photos,
    Timing,
    cropping_difference,
    decoding_difference,
    normalising_time,
    time_loading,
)
from vitcls.bench.source import add_source, measured_photos
from vitcls.machine import machine


def data_parser() -> ArgumentParser:
    """The options of `bench data`; those of the data are ImageDataModule's."""
    parser = ArgumentParser(
        prog="python -m vitcls bench data",
        description="Images a second in one thread, by a published example's way of loading and by ours.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    add_source(parser)
    parser.add_argument("--images", type=int, default=200, help="most images to load, spread over the data.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way loads them all.")
    parser.add_argument("--size", type=int, default=224, help="side of the network's input, pixels.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_data(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: there is no data, or no image in it can be decoded.
    """
    photos = measured_photos(options)
    with tempfile.TemporaryDirectory() as folder:
        timings = time_loading(photos, options.size, options.rounds, Path(folder))
    differences = {
        "decoded": decoding_difference(photos),
        "decoded, cropped, resized": cropping_difference(photos, options.size),
    }
    normalising = normalising_time(options.size)
    report = {
        "machine": machine(),
        "images": {"count": len(photos.split), "mean_bytes": photos.size, "mean_shape": photos.shape},
        "rounds": options.rounds,
        "size": options.size,
        "normalising_seconds": normalising,
        "timings": [asdict(timing) for timing in timings],
        "differences": {name: asdict(found) for name, found in differences.items()},
    }
    for line in _lines(report["machine"], photos, normalising, differences):
        print(line)
    Console().print(_table(timings, options))
    return report


def _lines(
    found: dict[str, Any], photos: Photos, normalising: float, differences: dict[str, Difference]
) -> Iterable[str]:
    yield "; ".join(f"{name} {value}" for name, value in found.items())
    height, width = photos.shape
    yield (
        f"{len(photos.split)} images, on average {height:.0f} x {width:.0f} pixels and {photos.size / 1e3:.0f} kB; "
        "one thread, files in memory"
    )
    yield f"normalising, which ours leaves to the device, would take {normalising * 1e6:.0f} us an image here"
    for name, difference in differences.items():
        yield f"{name}: at most {difference.largest} of 255 from Pillow's, {difference.share:.4%} of the values differ"


def _table(timings: list[Timing], options: Namespace) -> Table:
    table = Table(title=f"Images a second, {options.rounds} rounds in turn, to {options.size} x {options.size}")
    table.add_column("way")
    for heading in ("best", "median", "times the example"):
        table.add_column(heading, justify="right")
    for timing in timings:
        table.add_row(timing.name, f"{timing.best:.0f}", f"{timing.median:.0f}", f"{timing.ratio:.2f}")
    return table
