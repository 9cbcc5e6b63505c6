"""`bench serve`: what a server answers under load, against `predict` on the same photos at the same precision."""

import asyncio
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table

from vitcls.bench.clients import Clients, Load, Photo
from vitcls.bench.predicting import photos_in, predict_way
from vitcls.checkpoints import open_checkpoint
from vitcls.errors import UserError, check_range
from vitcls.machine import machine
from vitcls.models.classifier import ViTClassifier

_LIBRARIES = ("lightning", "fastapi", "uvicorn")
_STARTS_WITHIN = 120.0  # seconds
_PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}
# Batches of another size round otherwise: of float32 in the seventh digit, of bfloat16 in the third.
_TOLERANCES = {"32-true": 1e-4, "bf16-mixed": 0.03}


@dataclass(frozen=True)
class Serving:
    """One round.

    Attributes:
        predict: images a second of `predict`.
        serve: of the server.
        ratio: the second by the first.
        p50: seconds of the median request.
        p99: seconds within which 99 of 100 were answered.
        statuses: how many answers had which.
        wrong: answers that are not those of `predict`.
        broken: requests that were not answered.
        memory: MB of the server after it.
    """

    predict: float
    serve: float
    ratio: float
    p50: float
    p99: float
    statuses: dict[int, int]
    wrong: int
    broken: int
    memory: float


_SHOWN: dict[str, Callable[[Serving], str]] = {
    "images a second of predict": lambda one: f"{one.predict:.1f}",
    "images a second of serve": lambda one: f"{one.serve:.1f}",
    "serve is times as fast": lambda one: f"{one.ratio:.3f}",
    "milliseconds, median": lambda one: f"{1000 * one.p50:.0f}",
    "milliseconds, 99 of 100 within": lambda one: f"{1000 * one.p99:.0f}",
    "answers": lambda one: ", ".join(f"{count} of {status}" for status, count in sorted(one.statuses.items())),
    "of them wrong": lambda one: str(one.wrong),
    "requests without an answer": lambda one: str(one.broken),
    "MB of the server after it": lambda one: f"{one.memory:.0f}",
}


def serve_bench_parser() -> ArgumentParser:
    """The options of `bench serve`."""
    parser = ArgumentParser(
        prog="python -m vitcls bench serve",
        description="Starts `serve` as a process of its own and asks it with many clients at once, each answer "
        "compared with that of predict; and measures predict on the same photos. The clients take their share of the "
        "cores.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=str, help="run folder or .ckpt file.")
    parser.add_argument(
        "--predict", type=str | None, default=None, help="photos, as --data.predict (default: drawn ones)."
    )
    parser.add_argument("--images", type=int, default=256, help="how many of them at most.")
    parser.add_argument("--clients", type=int, default=32, help="that ask at once.")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round.")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed.")
    parser.add_argument("--batch_size", type=int, default=32, help="of predict.")
    parser.add_argument("--num_workers", type=int | None, default=None, help="of predict, as data.num_workers.")
    parser.add_argument("--options", type=list[str], default=[], help="of serve, such as '[--queue=64]'.")
    parser.add_argument("--rounds", type=int, default=1, help="how often both, in turn.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_serve(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: a number out of range, photos or a model that cannot be had, or a server that does not start.
    """
    check_range("clients", options.clients, options.clients >= 1, "at least 1")
    check_range("batch_size", options.batch_size, options.batch_size >= 1, "at least 1")
    check_range("seconds", options.seconds, options.seconds > 0, "above 0")
    check_range("precision", repr(options.precision), options.precision in _PRECISIONS, " or ".join(_PRECISIONS))
    seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = photos_in(folder / "photos", options)
        checkpoint, _ = open_checkpoint(options.model, "serve")
        model = ViTClassifier.load_from_checkpoint(checkpoint.file, map_location="cpu", weights_only=True)
        predict = predict_way(options, model, folder)
        predict()  # makes the network
        expected = expected_of(folder / "predictions.csv", _TOLERANCES[options.precision])
        words = [options.model, f"--precision={_PRECISIONS[options.precision]}", *options.options]
        with served(words, folder / "serve.log") as (address, process):
            before = memory_of(process.pid)
            rounds = [_round(options, predict, files, expected, address, process.pid) for _ in range(options.rounds)]
    print("; ".join(f"{name} {value}" for name, value in machine(*_LIBRARIES).items()))
    Console().print(_table(rounds, options, before))
    said = {name: options[name] for name in ("clients", "seconds", "precision", "batch_size")}
    shown = [asdict(one) for one in rounds]
    return {"machine": machine(*_LIBRARIES), **said, "images": len(files), "memory_before": before, "rounds": shown}


@contextmanager
def served(words: list[str], log: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server as a process of its own, ready: its address and itself; it is stopped at the end.

    Args:
        words: of the command line, after the verb; the port is any that is free unless they say one.
        log: file for what it says.

    Raises:
        UserError: it does not start; with what it said.
    """
    command = [sys.executable, "-m", "vitcls", "serve", "--port=0", *words]
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:  # noqa: S603 - ours
        try:
            yield _ready_address(process, log), process
        finally:
            process.terminate()


def _ready_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None and time.monotonic() < until:
        found = re.search(r"serving .* on (http://\S+?)\"", log.read_text(encoding="utf-8"))
        if found and _is_ready(found[1]):
            return found[1]
        time.sleep(0.05)
    raise UserError(f"The server did not start: {log.read_text(encoding='utf-8').strip()}")


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/ready", timeout=5):  # noqa: S310 - on this machine
            return True
    except (URLError, OSError):
        return False


def memory_of(process: int) -> float:
    """MB of memory that a process holds; nan where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _round(
    options: Namespace,
    predict: Callable[[], object],
    files: list[str],
    is_right: Callable[[Photo, Any], bool],
    address: str,
    process: int,
) -> Serving:
    start = time.perf_counter()
    predict()
    offline = len(files) / (time.perf_counter() - start)
    photos = [Photo(Path(file).name, Path(file).read_bytes()) for file in files]
    until = time.monotonic() + options.seconds
    clients = Clients(address, photos, is_right)
    load = asyncio.run(clients.ask(options.clients, lambda: time.monotonic() < until))
    return _figures(load, offline, memory_of(process))


def _figures(load: Load, offline: float, memory: float) -> Serving:
    online = load.statuses[200] / load.duration
    p50, p99 = np.percentile(load.seconds, [50, 99]).tolist() if load.seconds else (float("nan"), float("nan"))
    return Serving(offline, online, online / offline, p50, p99, dict(load.statuses), load.wrong, load.broken, memory)


def expected_of(predictions: Path, tolerance: float) -> Callable[[Photo, Any], bool]:
    """Whether an answer is that of predict: the same probabilities of the same classes, but for rounding.

    Args:
        predictions: CSV file of a predict.
        tolerance: by which a probability may differ.
    """
    with predictions.open(newline="", encoding="utf-8") as lines:
        rows = {Path(row["file"]).name: _scores(row) for row in csv.DictReader(lines)}

    def is_right(photo: Photo, answer: Any) -> bool:
        found = {best["label"]: best["score"] for best in answer["images"][0]["best"]}
        right = rows[photo.name]
        return _agrees(found, right, tolerance) and _agrees(right, found, tolerance)

    return is_right


def _agrees(one: dict[str, float], other: dict[str, float], tolerance: float) -> bool:
    """Whether the best classes of one are those of the other; of equals at the end either may stand there."""
    least = min(other.values())
    return all(
        abs(score - other[label]) <= tolerance if label in other else score <= least + tolerance
        for label, score in one.items()
    )


def _scores(row: dict[str, str]) -> dict[str, float]:
    """Of a row of predict: probabilities of its best classes."""
    numbered = [("label", "score"), *((f"label_{n}", f"score_{n}") for n in range(2, 6))]
    return {row[label]: float(row[score]) for label, score in numbered if row.get(label)}


def _table(rounds: list[Serving], options: Namespace, before: float) -> Table:
    table = Table(
        title=f"{options.clients} clients, {options.seconds:g} seconds, {options.precision}; median ratio "
        f"{median(one.ratio for one in rounds):.3f}; the server held {before:.0f} MB before"
    )
    table.add_column("round")
    for number in range(1, len(rounds) + 1):
        table.add_column(str(number), justify="right")
    for name, shown in _SHOWN.items():
        table.add_row(name, *(shown(one) for one in rounds))
    return table
