"""An exponential moving average of the weights: what is validated, kept and shipped instead of the last ones."""

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitcls.errors import UserError

log = logging.getLogger(__name__)


class AveragedWeights(WeightAveraging):
    """After each optimiser step, average = decay * average + (1 - decay) * weights; validation measures the average.

    best.ckpt, last.ckpt and `model/` hold the average; the checkpoints also hold the weights that train
    (`current_model_state`), from which a resume goes on.

    Lightning's EMAWeightAveraging does not fit here: it makes the average where the model is before training,
    on the CPU, writes frozen weights into checkpoints that are to hold the trained part alone, cannot load
    such checkpoints, and has the same decay from the first step on.

    Args:
        decay: in [0, 1). In the beginning it is less, (1 + n) / (10 + n) after n steps, or a short
            training would keep its random head (as TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network, on the device that it is trained on.

        Raises:
            UserError: decay is out of range, or the strategy deals out the weights.
        """
        if not 0 <= self.decay < 1:  # jsonargparse would bury an error of the constructor
            raise UserError(f"The decay of AveragedWeights is {self.decay}; it must be at least 0 and below 1.")
        if stage == "fit":
            if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
                raise UserError(
                    "AveragedWeights needs the whole network in each process, which this --trainer.strategy deals out; "
                    "take ddp, or leave the average out."
                )
            pl_module.configure_model()
            device = trainer.strategy.root_device
            self._average_model = AveragedModel(pl_module, device, multi_avg_fn=self._average, use_buffers=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights, and both without what is frozen."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if "current_model_state" in checkpoint:
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
            log.info("the weights of the checkpoint are no average: the average starts with them")

    def _average(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        """Update tensors of one kind in place; what is no fraction (counts, indices) is taken over."""
        if averaged[0].is_floating_point():
            made = int(updates)
            get_ema_multi_avg_fn(min(self.decay, (1 + made) / (10 + made)))(averaged, current, updates)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(new)
