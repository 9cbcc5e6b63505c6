"""What the trainer of a verb has besides its configuration: callbacks, loggers, length, launch."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from vitcls.callbacks import (
    AverageIsKept,
    BadSteps,
    ConfiguredPatience,
    DataWait,
    EpochSoFar,
    GracefulInterrupt,
    GradientCheck,
    RunCheckpoint,
)
from vitcls.errors import UserError

log = logging.getLogger(__name__)

DEFAULT_EPOCHS = 10
# Of a trainer that is no run: it says nothing and writes nothing.
QUIET: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False
)


def as_list(value: Any) -> list[Any]:
    """What a configuration gives as nothing, one thing or a list, as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def with_progress_bar(callbacks: list[Callback], shown: bool) -> list[Callback]:
    """With rich's bar where none is configured; without any where none is to be shown."""
    if not shown:
        return [c for c in callbacks if not isinstance(c, ProgressBar)]
    return callbacks if any(isinstance(c, ProgressBar) for c in callbacks) else [*callbacks, RichProgressBar()]


def run_loggers(configured: Any, run: Path, steps: int) -> list[Logger] | bool:
    """TensorBoard and CSV in the run folder, and those configured; none where `false` was said."""
    if configured is False:
        return False
    # What a lost training logged after the checkpoint's step is purged.
    own = [
        TensorBoardLogger(run, name="", version="", purge_step=steps or None),
        CSVLogger(run, name="", version=""),
    ]
    return [*own, *as_list(configured)]


def fit_callbacks(configured: list[Callback], run: Path, own: list[RunCheckpoint]) -> list[Callback]:
    """What a fit has besides the configured callbacks; checkpoints without a folder get the run's."""
    every = (GradientCheck, BadSteps, EpochSoFar, GracefulInterrupt, ConfiguredPatience, AverageIsKept)
    added: list[Callback] = [callback() for callback in every]
    if not any(isinstance(c, DataWait) for c in configured):
        added.append(DataWait())
    if not any(isinstance(c, RunCheckpoint) for c in configured):
        added += own
    for callback in [*configured, *added]:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.resolve())
    return added


def length(config: Namespace) -> dict[str, Any]:
    """How long to train, where the configuration does not say it."""
    if config.max_epochs is not None or config.max_steps != -1 or config.max_time is not None:
        return {}
    log.info("trainer.max_epochs is not given: %d", DEFAULT_EPOCHS)
    return {"max_epochs": DEFAULT_EPOCHS}


def check_strategy(strategy: Any) -> None:
    """Refuse the launchers after which this process knows neither the data nor the weights of the training.

    Raises:
        UserError: names the one to take.
    """
    if isinstance(strategy, str) and any(launcher in strategy for launcher in ("spawn", "fork", "notebook")):
        raise UserError(f"--trainer.strategy {strategy!r} cannot be used here: ddp does the same.")


def check_overfit(share: float, data: Mapping[str, Any]) -> None:
    """Refuse to train on the same few batches of what has none to come back to.

    A stream has no rows, and Lightning's order of them does not say which epochs take features.

    Args:
        share: `trainer.overfit_batches`.
        data: ImageDataModule's arguments.

    Raises:
        UserError: says what to do instead.
    """
    for name in ("streaming", "feature_views"):
        if share and data[name]:
            raise UserError(
                f"--trainer.overfit_batches {share} takes the same batches in each epoch, which --data.{name} "
                f"{str(data[name]).lower()} cannot give; leave one of the two out."
            )


def launched_by_torchrun(config: Namespace) -> dict[str, Any]:
    """Devices and nodes as torchrun started them; without this each process would train alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or config.devices != "auto":
        return {}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    strategy = "ddp" if config.strategy == "auto" else config.strategy
    return {"devices": local, "num_nodes": world // local, "strategy": strategy}
