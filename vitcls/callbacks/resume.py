"""What a resume takes from the user, and not from the checkpoint; and what it must not lose."""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging

from vitcls.errors import UserError, listing


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
    """Refuses to go on without the average that it was trained with: the weights would be it, or another its part."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at what the checkpoint holds.

        Raises:
            UserError: it holds an average that nothing here would keep.
        """
        averages = {c.state_key for c in cast(Any, trainer).callbacks if isinstance(c, WeightAveraging)}
        if "current_model_state" in checkpoint and not averages & checkpoint["callbacks"].keys():
            kept = [key for key in checkpoint["callbacks"] if "Averag" in key]
            raise UserError(
                f"The run keeps an average of its weights ({listing(kept)}), and this resume has no such callback: it "
                "would go on from the average. Add it again (ema.yaml or swa.yaml of configs/overlays), or start a new "
                "run."
            )


def _early_stoppings(trainer: Any) -> list[EarlyStopping]:
    return [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
