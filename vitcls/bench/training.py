"""`bench train`: images a second of `fit`, against a bare PyTorch loop over the same network and batches."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from vitcls.bench.ready import ReadyData
from vitcls.callbacks import BadImageCount, RunCheckpoint
from vitcls.cli import TRAINER_DEFAULTS
from vitcls.errors import check_range
from vitcls.machine import machine
from vitcls.models.classifier import ViTClassifier
from vitcls.models.tasks import loss_of
from vitcls.records import restore_history
from vitcls.runs import MONITOR
from vitcls.trainer_options import fit_callbacks, run_loggers, with_progress_bar

# Measured where no network is named, that of configs/digits.yaml: its short steps show what is done around them.
SMALL = {"model_type": "vit", "image_size": 16, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "intermediate_size": 192}
_LIBRARIES = ("lightning", "transformers", "peft")


@dataclass(frozen=True)
class Training:
    """Images a second, of each round.

    Attributes:
        fit: with all that a run has.
        bare: forward, backward and the optimiser's step alone.
        ratio: median of the first over the second in the same round.
    """

    fit: list[float]
    bare: list[float]
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", statistics.median(self.ratios))

    @property
    def ratios(self) -> list[float]:
        """Of each round."""
        return [fit / bare for fit, bare in zip(self.fit, self.bare, strict=True)]


def train_parser() -> ArgumentParser:
    """The options of `bench train`; those of the network are ViTClassifier's."""
    parser = ArgumentParser(
        prog="python -m vitcls bench train",
        description="Images a second of fit, against a bare PyTorch loop; both have their batches ready in memory.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(ViTClassifier, "model", skip={"labels", "image", "optimizer"})
    parser.add_argument("--batches", type=int, default=20, help="optimiser steps of a round.")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a step.")
    parser.add_argument("--classes", type=int, default=10, help="of the head.")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed.")
    parser.add_argument("--rounds", type=int, default=9, help="how often each of the two trains, in turn.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_train(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: a number out of range, or a network that cannot be had.
    """
    for name in ("batches", "batch_size", "classes"):
        check_range(name, options[name], options[name] >= 1, "at least 1")
    known = ("32-true", "bf16-mixed")
    check_range("precision", repr(options.precision), options.precision in known, " or ".join(known))
    if options.model.checkpoint is None and options.model.architecture is None:
        options.model.architecture = dict(SMALL)
    seed_everything(0, verbose=False)
    model = train_parser().instantiate_classes(options).model
    with tempfile.TemporaryDirectory() as folder:
        found = time_training(model, options, Path(folder))
    trainable, total = model.parameter_counts()
    print("; ".join(f"{name} {value}" for name, value in machine(*_LIBRARIES).items()))
    Console().print(_table(found, options, trainable, total))
    said = {name: options[name] for name in ("batches", "batch_size", "precision", "rounds")}
    network = {"network": type(model.network).__name__, "trainable": trainable, "weights": total}
    return {"machine": machine(*_LIBRARIES), **network, **said, **asdict(found)}


def time_training(model: ViTClassifier, options: Namespace, run: Path) -> Training:
    """One fit, after each of whose epochs the bare loop trains on the same batches.

    Args:
        model: to fit.
        options: of the parser.
        run: folder for what a run writes.
    """
    rounds = Rounds(options.rounds)
    own: list[Callback] = [BadImageCount(), rounds]
    callbacks = with_progress_bar([], shown=True)
    callbacks += fit_callbacks([], run, [RunCheckpoint(MONITOR[model.task])])
    defaults: dict[str, Any] = {**TRAINER_DEFAULTS, "default_root_dir": str(run)}
    trainer = Trainer(
        **defaults,
        max_epochs=options.rounds + 1,
        precision=options.precision,
        logger=run_loggers(None, run, 0),
        callbacks=[*callbacks, *own],
        devices=1,
    )
    restore_history(trainer.loggers, run, 0, {})  # as a fit begins
    trainer.fit(model, ReadyData(options.batches, options.batch_size, options.classes))
    return Training(rounds.fit, rounds.bare)


class Rounds(Callback):
    """Times the steps of each epoch but the first, which warms up, and after each a bare epoch.

    What an epoch ends with (validation, checkpoints, the figures) is left out: it does not grow with the epoch.

    Args:
        rounds: how many.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self.fit: list[float] = []
        self.bare: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network as it is, for the bare loop."""
        self._bare_epoch = bare_loop(pl_module, trainer)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = _now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it after the last step, when the other callbacks have had their turn."""
        if trainer.is_last_batch and trainer.current_epoch:
            self.fit.append(_images(trainer) / (_now() - self._start))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train the copy on the same batches."""
        start = _now()
        self._bare_epoch()
        if trainer.current_epoch:
            self.bare.append(_images(trainer) / (_now() - start))


def bare_loop(model: ViTClassifier, trainer: Trainer) -> Callable[[], None]:
    """An epoch of a copy of the model's network: forward, backward, the optimiser's step, nothing else."""
    network = copy.deepcopy(model.network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, model.hparams["lr"], weight_decay=model.hparams["weight_decay"])
    device = trainer.strategy.root_device
    mixed = trainer.precision == "bf16-mixed"

    def epoch() -> None:
        for batch in trainer.datamodule.splits["train"].batches:  # type: ignore[attr-defined]
            with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
                logits = network(pixel_values=batch["pixel_values"].to(device)).logits
                loss = loss_of(model.task, logits.float(), batch["labels"].to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def _images(trainer: Trainer) -> int:
    return len(trainer.datamodule.splits["train"])  # type: ignore[attr-defined]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _table(found: Training, options: Namespace, trainable: int, total: int) -> Table:
    table = Table(
        title=f"{trainable:,} of {total:,} weights train, batches of {options.batch_size}, {options.precision}, "
        f"{options.rounds} rounds of {options.batches} steps in turn"
    )
    for heading in ("way", "images a second: median", "least", "most", "times the bare loop: median", "least", "most"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    ones = [1.0] * len(found.bare)
    for name, speeds, ratios in (("bare loop", found.bare, ones), ("fit", found.fit, found.ratios)):
        spread = [(statistics.median(values), min(values), max(values)) for values in (speeds, ratios)]
        table.add_row(name, *(f"{value:.1f}" for value in spread[0]), *(f"{value:.3f}" for value in spread[1]))
    return table
