"""After a resume, what the user says now counts."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class ConfiguredPatience(Callback):
    """Keeps the patience that EarlyStopping was configured with.

    EarlyStopping restores the interrupted run's patience from the checkpoint and would silently
    overrule a new one.
    """

    def __init__(self) -> None:
        self._patience: dict[int, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note it before anything is restored."""
        self._patience = {id(c): c.patience for c in _early_stoppings(trainer)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it back."""
        for callback in _early_stoppings(trainer):
            callback.patience = self._patience[id(callback)]


def _early_stoppings(trainer: Any) -> list[EarlyStopping]:
    return [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
