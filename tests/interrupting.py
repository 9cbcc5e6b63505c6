"""A callback that presses Ctrl-C."""

import signal

from lightning.pytorch import Callback


class InterruptAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step - 1 and trainer.is_global_zero:
            signal.raise_signal(signal.SIGINT)
