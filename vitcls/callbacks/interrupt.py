"""Ctrl-C, and the signals that take a machine away: between two optimiser steps, never inside one."""

import math
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vitcls.errors import Interrupted

# SIGTERM: kill, a cloud that wants its machine back, a cluster's scancel or time limit. SIGUSR1: what SLURM's
# `--signal=USR1@300` sends 300 seconds before the time limit.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class GracefulInterrupt(Callback):
    """Lets the accumulation window that runs finish before SIGINT (Ctrl-C), SIGTERM or SIGUSR1 ends the training.

    A KeyboardInterrupt inside an optimiser step would leave half of the weights stepped, and the
    last.ckpt saved then would be that; gradients that are accumulated for the next step are in no
    checkpoint. The validation that follows an epoch's last step, or that runs, is finished, or its epoch would
    have no figures. A second Ctrl-C ends at once and saves nothing.

    Lightning's own handlers are not used: of SIGTERM it ends without a checkpoint, and within an accumulation
    window; under SLURM it saves at SIGUSR1 wherever the step is, into a file beside the run folders that the next
    training of any name would take up.
    """

    def __init__(self) -> None:
        self._asked: int | None = None  # the number of the signal that came
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over.

        Raises:
            Interrupted: SIGTERM came while the training was made ready.
        """
        if trainer.received_sigterm:
            raise Interrupted(signal.SIGTERM)
        self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, but not while an interrupted training is being saved."""
        if not isinstance(exception, KeyboardInterrupt):
            self._give_back()

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here, where the weights are whole and no gradient is left over.

        Raises:
            Interrupted: a signal came, here or in another process.
        """
        if can_be_left(trainer, batch_idx) and self._is_asked(trainer):
            trainer._logger_connector.update_train_step_metrics()  # what Lightning would do next: log this step
            raise Interrupted(self._asked or signal.SIGINT)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End here, where the epoch before has been validated and saved.

        Raises:
            Interrupted: a signal came, here or in another process.
        """
        if self._is_asked(trainer):
            raise Interrupted(self._asked or signal.SIGINT)

    def _is_asked(self, trainer: Trainer) -> bool:
        # All processes end after the same batch: one that went on would wait for the others forever.
        return trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)

    def _ask(self, number: int, _: Any) -> None:
        if number == self._asked == signal.SIGINT:
            raise SystemExit("interrupted twice")
        self._asked = self._asked or number

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def window_ends(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimiser step has followed this batch, so that no gradient is left over."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def can_be_left(trainer: Any, batch_idx: int) -> bool:
    """Whether a resume goes on after this batch of an epoch as if nothing had been.

    Where a validation follows it does not: Lightning 2.6 takes one that did not run for done. After the last batch
    that is so in any case; the end of the epoch is the place to leave then.
    """
    batches = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    every = trainer.val_check_batch or math.inf
    validates = every > trainer.accumulate_grad_batches and (batches + 1) % every == 0
    return window_ends(trainer, batch_idx) and not trainer.is_last_batch and not validates
