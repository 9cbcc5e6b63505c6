"""Averages of the weights: what is validated, kept and shipped instead of the last ones."""

import logging
from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from vitcls.errors import UserError, listing
from vitcls.models.network import batch_norms

log = logging.getLogger(__name__)


class KeptAverage(WeightAveraging, ABC):
    """An average that, once it has begun, is validated and kept in the place of the weights.

    best.ckpt, last.ckpt and `model/` hold the average; the checkpoints also hold the weights that train
    (`current_model_state`), from which a resume goes on.

    Lightning's own averages do not fit here: they are made where the model is before training, on the CPU, write
    frozen weights into checkpoints that are to hold the trained part alone, cannot load such checkpoints, and
    put the untrained network in the place of the weights until they begin.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network, on the device that it is trained on.

        Raises:
            UserError: the strategy deals out the weights, or there is another average.
        """
        if stage == "fit":
            if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
                raise UserError(
                    f"{type(self).__name__} needs the whole network in each process, which this --trainer.strategy "
                    "deals out; take ddp, or leave the average out."
                )
            averages = [type(c).__name__ for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
            if len(averages) > 1:
                raise UserError(
                    f"{listing(averages)} each put their average in the place of the weights, and a checkpoint holds "
                    "one; leave the others out."
                )
            pl_module.configure_model()
            device = trainer.strategy.root_device
            self._average_model = AveragedModel(pl_module, device, multi_avg_fn=self._average, use_buffers=True)

    @property
    def has_begun(self) -> bool:
        """Whether there is an average of anything yet."""
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the average."""
        if self.has_begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        if self.has_begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        if self.has_begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights, and both without what is frozen."""
        if not self.has_begun:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["current_model_state"] = pl_module.kept_part(checkpoint["current_model_state"])  # type: ignore[operator]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the weights that trained and with their average; without one, it starts at the weights."""
        if self._average_model is None:
            return
        self._average_model.module.load_state_dict(checkpoint["state_dict"])
        if "current_model_state" in checkpoint:
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
            pl_module.load_state_dict(checkpoint["current_model_state"])
        else:
            log.info("the weights of the checkpoint are no average: the average starts with them or later ones")

    def _average(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        """Update tensors of one kind in place; what is no fraction (counts, indices) is taken over."""
        if averaged[0].is_floating_point():
            self._mix(averaged, current, updates)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(new)

    @abstractmethod
    def _mix(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        """Update the averaged fractions in place."""


class AveragedWeights(KeptAverage):
    """After each optimiser step, average = decay * average + (1 - decay) * weights; validation measures the average.

    Args:
        decay: in [0, 1). In the beginning it is less, (1 + n) / (10 + n) after n steps, or a short
            training would keep its random head (as TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network.

        Raises:
            UserError: decay is out of range, or the strategy deals out the weights.
        """
        if not 0 <= self.decay < 1:  # jsonargparse would bury an error of the constructor
            raise UserError(f"The decay of AveragedWeights is {self.decay}; it must be at least 0 and below 1.")
        super().setup(trainer, pl_module, stage)

    def _mix(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        made = int(updates)
        get_ema_multi_avg_fn(min(self.decay, (1 + made) / (10 + made)))(averaged, current, updates)


class AveragedEpochs(KeptAverage):
    """The mean of the weights at the ends of the last epochs: stochastic weight averaging (SWA).

    Izmailov et al. 2018, arXiv:1803.05407, algorithm 1. They differ enough to be worth averaging where the learning
    rate has not fallen to 0 (section 3.2): `model.schedule: constant`. Until the average begins, the weights
    themselves are validated and kept. An epoch's end counts before it is validated.

    Args:
        start: share of the optimiser steps after which the ends of epochs count, in [0, 1).
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        self.start = start

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Copy the network.

        Raises:
            UserError: start is out of range, the strategy deals out the weights, or batch norms train.
        """
        if not 0 <= self.start < 1:
            raise UserError(f"The start of AveragedEpochs is {self.start}; it must be at least 0 and below 1.")
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and any(norm.training for norm in batch_norms(pl_module.network)):
            raise UserError(
                "AveragedEpochs would keep batch norms with the statistics of other weights than the mean of the "
                f"epochs ({type(pl_module.network).__name__} has some); take AveragedWeights instead "
                "(configs/overlays/ema.yaml), or a network without (ViT, DeiT, BEiT, Swin, DINOv2, ConvNeXt)."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights at the end of an epoch, before they are validated."""
        if trainer.is_last_batch and trainer.global_step > self._latest_update_step and self._is_due(trainer):
            assert self._average_model is not None
            self._average_model.update_parameters(pl_module)
            self._latest_update_step = trainer.global_step

    def _is_due(self, trainer: Trainer) -> bool:
        # Once begun it goes on, also in a resume that makes the training longer.
        return self.has_begun or trainer.global_step >= self.start * trainer.estimated_stepping_batches

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model; say so where there is none."""
        super().on_train_end(trainer, pl_module)
        if not self.has_begun:
            log.warning(
                "AveragedEpochs averaged nothing: the training ended before the end of an epoch after %.0f %% of its "
                "steps (start)",
                100 * self.start,
            )

    def _mix(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        get_swa_multi_avg_fn()(averaged, current, updates)
