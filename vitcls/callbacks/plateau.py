"""A learning rate that falls where validation no longer gets better."""

import logging
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from vitcls.errors import check_range

log = logging.getLogger(__name__)

_KEPT = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class RateOnPlateau(Callback):
    """Lowers the learning rates when a validation figure has not improved for some epochs.

    torch's ReduceLROnPlateau decides; what it decides is a factor on the rates of `model.schedule`, which so keeps its
    warm-up. The schedule to take with it is `constant`.

    Args:
        monitor: validation metric.
        mode: whether better is `min` or `max`.
        factor: of the rates, each time, in (0, 1).
        patience: epochs without improvement that are waited for, at least 0.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", factor: float = 0.1, patience: int = 2
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self._applied = 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with the rates as they are.

        Raises:
            UserError: a number is out of range.
        """
        check_range("factor (RateOnPlateau)", self.factor, 0 < self.factor < 1, "above 0 and below 1")
        check_range("patience (RateOnPlateau)", self.patience, self.patience >= 0, "at least 0")
        unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # its rate is the factor on all others
        self._plateau = ReduceLROnPlateau(unit, self.mode, factor=self.factor, patience=self.patience)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the figure of the epoch, if it was validated."""
        if self.monitor not in trainer.callback_metrics:
            return
        before = self._now
        self._plateau.step(float(trainer.callback_metrics[self.monitor]))
        if self._now != before:
            log.info(
                "%s has not improved for %d epochs: the learning rates are now %g of the schedule's",
                self.monitor,
                self.patience + 1,
                self._now,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lower the rates where that was decided, also after a resume, which begins with those of the configuration."""
        if self._now == self._applied:
            return
        self._applied = self._now
        optimizer, schedule = trainer.optimizers[0], cast(LambdaLR, trainer.lr_scheduler_configs[0].scheduler)
        schedule.base_lrs = [group["initial_lr"] * self._now for group in optimizer.param_groups]
        for group, rate, shape in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * shape(schedule.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The factor, the best figure, and how long it has been waited for a better one."""
        return {name: self._plateau.state_dict()[name] for name in _KEPT} | {"factor": self._now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; the options stay as they are configured now."""
        self._plateau.load_state_dict({name: state_dict[name] for name in _KEPT})
        self._plateau.optimizer.param_groups[0]["lr"] = state_dict["factor"]

    @property
    def _now(self) -> float:
        return self._plateau.optimizer.param_groups[0]["lr"]
