"""Ctrl-C between two optimiser steps, never inside one."""

import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class GracefulInterrupt(Callback):
    """Lets the accumulation window that runs finish before Ctrl-C ends the training.

    A KeyboardInterrupt inside an optimiser step would leave half of the weights stepped, and the
    last.ckpt saved then would be that; gradients that are accumulated for the next step are in no
    checkpoint. A validation that runs is finished, or its epoch would have no figures. A second Ctrl-C
    ends at once and saves nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over SIGINT."""
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give SIGINT back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give SIGINT back, but not while an interrupted training is being saved."""
        if not isinstance(exception, KeyboardInterrupt):
            self._give_back()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here, where the weights are whole and no gradient is left over."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._end_if_asked(trainer)

    def _ask(self, *_: Any) -> None:
        if self._asked:
            raise SystemExit("interrupted twice")
        self._asked = True

    def _end_if_asked(self, trainer: Trainer) -> None:
        # All processes end after the same batch: one that went on would wait for the others forever.
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise KeyboardInterrupt

    def _give_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
