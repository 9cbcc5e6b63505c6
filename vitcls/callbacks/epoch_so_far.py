"""The training figures of an epoch that is interrupted: of all its batches, not of those after the resume alone."""

import logging
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from vitcls.checkpoints import UNLOGGED
from vitcls.processes import of_all_processes

log = logging.getLogger(__name__)

KEY = "epoch_so_far"  # of a checkpoint inside an epoch

Figures = dict[str, dict[str, Any]]  # by name, the tensors that a figure is computed from


class EpochSoFar(Callback):
    """Keeps what was measured of an unfinished epoch in checkpoints, for each process, and goes on with it.

    That is the state of the model's torchmetrics for training, and Lightning's own sums and means of values that were
    logged with `on_epoch=True`, such as `train/bad_images`; neither is in Lightning's checkpoints. Those of an epoch
    that has just ended are kept as well: Lightning logs them after the checkpoints are written.
    """

    def __init__(self) -> None:
        self._inside = False
        self._has_ended = False
        self._metrics: Figures = {}
        self._logged: Figures = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the figures of this process; the model and Lightning's sums are not ready for them."""
        kept: list[dict[str, Figures]] = checkpoint.get(KEY, [])
        if len(kept) == trainer.world_size:
            own = kept[trainer.global_rank]
            self._metrics, self._logged = own["metrics"], own["logged"]
        elif kept:
            log.warning(
                "the epoch was interrupted with %d processes and goes on with %d: its training figures are those of "
                "its rest",
                len(kept),
                trainer.world_size,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the state of the metrics back."""
        metrics = _train_metrics(pl_module)
        for name, state in self._metrics.items():
            for key, value in state.items():
                setattr(metrics[name], key, value.to(pl_module.device))
        self._inside = bool(self._metrics or self._logged)
        self._metrics = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the first batch has been logged, add what was logged before it.

        a + b is b + a to the last bit, so the sums are those of an uninterrupted epoch.
        """
        if self._inside:
            self._add_logged(trainer)
        self._inside, self._has_ended = True, False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch is finished: nothing of it belongs into the next."""
        self._add_logged(trainer)
        self._inside, self._has_ended = False, True
        self._logged = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the figures of all processes inside an epoch, and what is to be logged at its end."""
        if self._has_ended:
            row = cast(Any, trainer)._logger_connector.metrics["log"]
            checkpoint[UNLOGGED] = {"epoch": trainer.current_epoch, **{k: float(v) for k, v in row.items()}}
        if not self._inside:
            return
        self._add_logged(trainer)
        own = {"metrics": _states(_train_metrics(pl_module)), "logged": {**self._logged, **_sums(trainer)}}
        checkpoint[KEY] = of_all_processes(own, trainer.world_size)

    def _add_logged(self, trainer: Any) -> None:
        results = trainer.fit_loop.epoch_loop._results
        for name in [name for name in self._logged if name in results]:
            metric, before = results[name], self._logged.pop(name)
            reduce = {"max": torch.maximum, "min": torch.minimum}.get(metric.meta.reduce_fx.__name__, torch.add)
            for key, value in before.items():
                setattr(metric, key, reduce(getattr(metric, key), value.to(metric.value.device)))
            metric._computed = None


def _train_metrics(pl_module: LightningModule) -> dict[str, Metric]:
    metrics = pl_module.get_submodule("_metrics.train_")
    return {name: module for name, module in metrics.named_modules() if isinstance(module, Metric)}


def _states(metrics: dict[str, Metric]) -> Figures:
    return {name: _copied(metric.metric_state) for name, metric in metrics.items()}


def _sums(trainer: Any) -> Figures:
    """What Lightning 2.6 has summed of this epoch's logged values; its class for them is not public."""
    results = trainer.fit_loop.epoch_loop._results
    summed = {name: r for name, r in results.items() if r.is_tensor and r.meta.on_epoch and not r.has_reset}
    return {name: _copied(metric.metric_state) for name, metric in summed.items()}


def _copied(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items() if isinstance(value, Tensor)}
