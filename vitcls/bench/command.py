"""`python -m vitcls bench data`: measures how fast this machine loads this data."""

import json
import os
import platform
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
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
    readable_photos,
    time_loading,
)
from vitcls.data.choice import SourceChoice
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.inputs import unlabelled
from vitcls.data.loaders import usable_cores
from vitcls.errors import UserError, check_range, suggestion
from vitcls.wording import parsed

MEASURED = ("data",)
_LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")
_SOURCES = ("dataset", "config_name", "revision", "train_dir", "train_files", "train_split", "image_column")


def run_bench(words: list[str]) -> int:
    """Measure and print.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake of the user.
    """
    words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m vitcls bench {{{','.join(MEASURED)}}} [options]\n\n{__doc__}")
        return 0
    if words[0] not in MEASURED:
        raise UserError(
            f"{words[0]!r} cannot be measured{suggestion(words[0], MEASURED)}; what can: {', '.join(MEASURED)}."
        )
    with suppress(SystemExit):  # how --help ends
        bench_data(parse(words[1:]))
    return 0


def data_parser() -> ArgumentParser:
    """The options of `bench data`; those of the data are ImageDataModule's."""
    parser = ArgumentParser(
        prog="python -m vitcls bench data",
        description="Images a second in one thread, by a published example's way of loading and by ours.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    others = set(signature(ImageDataModule).parameters) - set(_SOURCES)
    parser.add_class_arguments(ImageDataModule, "data", skip=others)
    parser.add_argument("--images", type=int, default=200, help="most images to load, spread over the data.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way loads them all.")
    parser.add_argument("--size", type=int, default=224, help="side of the network's input, pixels.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def parse(words: list[str]) -> Namespace:
    """The options.

    Raises:
        UserError: what is wrong with them.
    """
    parser = data_parser()
    options = parsed(parser, words, parser)
    for name in ("images", "rounds", "size"):
        check_range(name, options[name], options[name] >= 1, "at least 1")
    if options.output is not None and not Path(options.output).expanduser().parent.is_dir():
        raise UserError(f"--output {options.output!r} is in a folder that does not exist; make it first.")
    return options


def bench_data(options: Namespace) -> None:
    """Measure as the options say, print a table, write the JSON file.

    Raises:
        UserError: there is no data, or no image in it can be decoded.
    """
    photos = _photos(options)
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
    if options.output is not None:
        Path(options.output).expanduser().write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The processor, the cores that may be used, and the versions of what decodes and resizes."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _processor() -> str:
    with suppress(OSError):  # Linux; elsewhere Python knows it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _photos(options: Namespace) -> Photos:
    said = {field.name: options.data[field.name] for field in fields(SourceChoice) if field.name in _SOURCES}
    source, split = SourceChoice(**said).train()
    photos = readable_photos(unlabelled(source.load(split), split, said["image_column"]), options.images)
    if not len(photos.split):
        raise UserError(f"None of the images that were tried in {split!r} can be decoded; give other data.")
    return photos


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
