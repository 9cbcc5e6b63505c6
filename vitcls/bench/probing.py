"""`bench probe`: what a head costs that trains on features of the frozen network, against one that trains on images."""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import check_range
from vitcls.machine import machine
from vitcls.models.classifier import ViTClassifier
from vitcls.runs import MONITOR
from vitcls.trainer_options import QUIET

FROM_IMAGES = 0  # views: the images of each epoch go through the network


@dataclass(frozen=True)
class Probe:
    """Of training a head, over the rounds.

    Attributes:
        views: of each image whose features were computed once; 0: none.
        seconds: of each round, from the opened data to the last validation.
        figure: of each round, the last epoch's accuracy (multilabel: map), in 0..1.
        share: median of the seconds over those from images in the same round.
    """

    views: int
    seconds: list[float]
    figure: list[float]
    share: float


def probe_parser() -> ArgumentParser:
    """The options of `bench probe`; those of data and network are ImageDataModule's and ViTClassifier's."""
    parser = ArgumentParser(
        prog="python -m vitcls bench probe",
        description="Training the head alone, on features that are computed once and on the images of each epoch.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(ImageDataModule, "data", skip={"feature_views"})
    parser.add_class_arguments(ViTClassifier, "model", skip={"train", "adapter", "optimizer"})
    parser.add_argument("--views", type=list[int], default=[1, 4], help="views of each image, one training for each.")
    parser.add_argument("--epochs", type=int, default=20, help="of each training.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each trains, in turn; the seed is the round.")
    parser.add_argument("--precision", type=str, default="32-true", help="as trainer.precision.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_probe(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: a number out of range, or data or a network that cannot be had.
    """
    for name in ("epochs", "views"):
        values = options[name] if isinstance(options[name], list) else [options[name]]
        check_range(name, options[name], bool(values) and min(values) >= 1, "at least 1")
    ways = [FROM_IMAGES, *options.views]
    rows = track(range(options.rounds), "rounds", console=Console(stderr=True), transient=True)
    rounds = [[_trained(options, views, seed) for views in ways] for seed in rows]
    found = [_probe(ways, rounds, number) for number in range(len(ways))]
    print("; ".join(f"{name} {value}" for name, value in machine().items()))
    Console().print(_table(found, options))
    said = {name: options[name] for name in ("epochs", "rounds", "precision")}
    return {"machine": machine(), **said, "ways": [asdict(probe) for probe in found]}


def _trained(options: Namespace, views: int, seed: int) -> tuple[float, float]:
    """Seconds of a training, and its last figure."""
    seed_everything(seed, verbose=False)
    data = ImageDataModule(**{**options.data.as_dict(), "feature_views": views})
    model = ViTClassifier(**{**options.model.as_dict(), "train": "head"})
    trainer = Trainer(max_epochs=options.epochs, precision=options.precision, devices=1, **QUIET)
    start = time.perf_counter()
    trainer.fit(model, data)
    return time.perf_counter() - start, float(trainer.callback_metrics[MONITOR[model.task]])


def _probe(ways: list[int], rounds: list[list[tuple[float, float]]], number: int) -> Probe:
    seconds, figures = zip(*(found[number] for found in rounds), strict=True)
    share = statistics.median(found[number][0] / found[0][0] for found in rounds)
    return Probe(ways[number], list(seconds), list(figures), share)


def _table(found: list[Probe], options: Namespace) -> Table:
    table = Table(
        title=f"A head in {options.epochs} epochs, {options.rounds} rounds in turn: medians, and each accuracy"
    )
    table.add_column("trains on", no_wrap=True)
    for heading in ("seconds", "times", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=heading != "accuracy")
    for probe in found:
        name = f"features of {probe.views} views" if probe.views else "images"
        figures = ", ".join(f"{figure:.3f}" for figure in probe.figure)
        table.add_row(name, f"{statistics.median(probe.seconds):.1f}", f"{probe.share:.3f}", figures)
    return table
