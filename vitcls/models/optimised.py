"""How a classifier's network is stepped: rates, schedule, accumulation, frozen first epochs."""

from typing import Any

import torch
from lightning.pytorch import LightningModule

from vitcls.data.seeding import seed_draws
from vitcls.errors import UserError
from vitcls.models.layer_rates import rates_of_layers
from vitcls.models.network import drop_gradients_below_head, hold_frozen_statistics
from vitcls.optim import (
    AccumulationWindow,
    OptimizerFactory,
    build_optimizer,
    build_schedule,
    check_clipping,
    check_same_groups,
    check_same_optimizer,
    keep_configured_rates,
    parameter_groups,
    warmup_steps,
)
from vitcls.types import Batch


class OptimisedModule(LightningModule):
    """The optimisation of a LightningModule, by its hyper-parameters.

    A class of its own makes the network and keeps it.

    Attributes:
        network: made before the training starts.
    """

    network: Any
    _optimizer_factory: OptimizerFactory | None
    _keeps_trained_only: bool
    _window: AccumulationWindow

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and decay counted in optimiser steps, unless told otherwise."""
        rates = (self.hparams["lr"], self.hparams["weight_decay"])
        optimizer = build_optimizer(self._optimizer_factory, self._parameter_groups(), *rates)
        total = self._total_steps()
        warmup = warmup_steps(total, self.hparams["warmup_steps"], self.hparams["warmup_fraction"])
        shape = (self.hparams["schedule_power"], self.hparams["decay_fraction"])
        scheduler = build_schedule(self.hparams["schedule"], optimizer, warmup, total, *shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_resumed_optimizer(self, saved: list[dict[str, Any]]) -> None:
        """Refuse a resume whose optimiser would not fit its saved state.

        Args:
            saved: `param_groups` of the checkpoint's optimiser.

        Raises:
            UserError: the parameters are grouped otherwise, or it is another optimiser.
        """
        check_same_groups(saved, self._parameter_groups())
        rates = (self.hparams["lr"], self.hparams["weight_decay"])
        check_same_optimizer(saved, build_optimizer(self._optimizer_factory, self._parameter_groups(), *rates))

    def on_train_start(self) -> None:
        """Start with an empty window, at the configured rates also after a resume."""
        self._hold_frozen_epochs()  # Lightning does not call on_train_epoch_start where a resume is inside of an epoch
        loader = self.trainer.train_dataloader
        self._window = AccumulationWindow(getattr(loader, "batch_size", None) or 1)
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        check_clipping(optimizer, self.trainer.gradient_clip_val, str(self.trainer.precision))  # type: ignore[arg-type]
        keep_configured_rates(optimizer, scheduler, self._parameter_groups())  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let dropout follow from the seed, the process, the epoch and the batch alone: a resume draws the same."""
        seed_draws(self.trainer.global_rank, self.current_epoch, batch_idx)

    def on_train_epoch_start(self) -> None:
        """Hold what is frozen in the first epochs as it is."""
        self._hold_frozen_epochs()

    def _hold_frozen_epochs(self) -> None:
        if self.hparams["freeze_epochs"] and not self._keeps_trained_only:
            hold_frozen_statistics(self.network, self.current_epoch < self.hparams["freeze_epochs"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the accumulated gradient the mean over the window's images; in the first epochs, the head's alone."""
        if self.current_epoch < self.hparams["freeze_epochs"]:
            drop_gradients_below_head(self.network)
        images: float = self._window.images
        if self.trainer.world_size > 1:
            count = torch.tensor(images, dtype=torch.float32, device=self.device)
            images = float(self.trainer.strategy.reduce(count, reduce_op="mean"))
        self._window.close(self.parameters(), self.trainer.accumulate_grad_batches, images)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        lr = self.hparams["lr"]
        ratio = (self.hparams["adapter"] or {}).get("b_lr_ratio", 1.0)
        rates = rates_of_layers(self.network, lr, self.hparams["head_lr"], self.hparams["layer_decay"], ratio)
        return parameter_groups(self.network, lr, self.hparams["weight_decay"], rates)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UserError(
                "The learning rate's schedule needs to know how long the training is: give --trainer.max_epochs "
                "or --trainer.max_steps, also beside --trainer.max_time."
            )
        return int(total)
