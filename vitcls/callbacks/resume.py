"""What a resume takes from the user, and not from the checkpoint; and what it must not lose."""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging

from vitcls.errors import UserError


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


class AverageIsKept(Callback):
    """Refuses to go on without an average of the weights where one was kept: the weights would be the average."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at what the checkpoint holds.

        Raises:
            UserError: it holds an average that nothing here would keep.
        """
        averages = any(isinstance(c, WeightAveraging) for c in cast(Any, trainer).callbacks)
        if "current_model_state" in checkpoint and not averages:
            raise UserError(
                "The run keeps an average of its weights, and this resume has no callback for it: it would go on from "
                "the average. Add AveragedWeights or AveragedEpochs again, as the run had it (--config "
                "configs/overlays/ema.yaml or swa.yaml), or start a new run."
            )


def _early_stoppings(trainer: Any) -> list[EarlyStopping]:
    return [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
