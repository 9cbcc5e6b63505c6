"""Callbacks of the tests: one presses Ctrl-C, one keeps the order of the images."""

import json
import signal
from pathlib import Path

from lightning.pytorch import Callback


class InterruptAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step - 1 and trainer.is_global_zero:
            signal.raise_signal(signal.SIGINT)


class InterruptInBatch(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            signal.raise_signal(signal.SIGINT)


class KeepOrder(Callback):
    """Writes the ids and the mean pixel of each image of the last epoch, in the order of training."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.seen: list[tuple[int, float]] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        means = batch["pixel_values"].mean((1, 2, 3))
        self.seen += zip(batch["ids"].tolist(), means.tolist(), strict=True)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.file.write_text(json.dumps(self.seen))
