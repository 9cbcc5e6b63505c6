"""What the trainer of a verb has besides its configuration: callbacks, loggers, length, launch."""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
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
    """Devices and nodes as torchrun started them; without this each process would train alone.

    Raises:
        UserError: the nodes that are configured are not those that torchrun started.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", world // local))
    if nodes * local != world:
        raise UserError(
            f"torchrun started {world} processes on {nodes} nodes, {local} of them on {socket.gethostname()}; give "
            "each node the same --nproc_per_node."
        )
    if config.num_nodes not in (1, nodes):
        raise UserError(
            f"--trainer.num_nodes is {config.num_nodes}, but torchrun started {world} processes on {nodes} node(s); "
            f"say --nnodes {config.num_nodes} to torchrun on each node, or leave the option out."
        )
    devices = local if config.devices == "auto" else config.devices
    strategy = "ddp" if config.strategy == "auto" else config.strategy
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def check_launch(trainer: Trainer) -> None:
    """Refuse to train as fewer or more processes than a launcher has started: these would hang, or train alone.

    Raises:
        ValueError: Lightning's, with both numbers.
    """
    nodes = getattr(trainer.strategy, "num_nodes", 1)
    if TorchElasticEnvironment.detect():
        TorchElasticEnvironment().validate_settings(trainer.num_devices, nodes)
    elif (
        "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect()
    ):  # srun's; a job's script without it is one process
        SLURMEnvironment().validate_settings(trainer.num_devices, nodes)


def check_restarts(resumes: bool, checkpoint: str | None) -> None:
    """Refuse to be restarted by torchrun without a word about where to go on: each restart would be a new run.

    Raises:
        UserError: says what to add.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and not resumes and not (checkpoint and Path(checkpoint).expanduser().is_dir()):
        raise UserError(
            f"torchrun is to restart a training that fails (--max_restarts {restarts}), and each time it would start "
            "anew; add --resume true, which goes on from the last checkpoint, or leave --max_restarts out."
        )
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Read and seen in torch 2.15: the agents' store outlives a restart, with the addresses of the former processes.
        log.warning(
            "after a restart the processes may look for the ones before and wait until they time out; export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
        )
