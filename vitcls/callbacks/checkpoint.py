"""best.ckpt and last.ckpt of a run."""

import logging
import os
import shlex
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vitcls.data.dead_workers import DeadWorkerError
from vitcls.errors import UserError
from vitcls.runs import BEST, LAST

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with the files of a run folder: the best by a metric, and the last.

    An interrupted training saves last.ckpt before it ends. A run folder that was moved or renamed
    keeps its best score when it is resumed.

    Args:
        monitor: validation metric that chooses the best epoch; `epoch` keeps the last one, whatever its figures.
        mode: whether the best is its `max` or its `min`.
        tie_break: metric whose smaller value decides between epochs with the same score. A small
            validation set makes ties: of 50 images, one is 2 points of accuracy.
        dirpath: folder; not given: the run folder.
    """

    def __init__(
        self,
        monitor: str = "val/accuracy",
        mode: Literal["min", "max"] = "max",
        tie_break: str = "val/loss",
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.tie_break = tie_break
        self._best_tie_break = float("inf")

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is the best so far."""
        tie_break = float(trainer.callback_metrics.get(self.tie_break, float("inf")))
        better = super().check_monitor_top_k(trainer, current)
        tied = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        better = better or (tied and tie_break < self._best_tie_break)
        if better:
            self._best_tie_break = tie_break
        return better

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save best.ckpt where the epoch is the best, and last.ckpt after every epoch.

        ModelCheckpoint's own `save_last` leaves out epochs that are not the best: its "last" is the
        last best, and a resume would silently throw the epochs after it away.
        """
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and not bool(loss.isfinite()):
            raise UserError(
                f"The training diverged: its loss is {loss.item()} at step {trainer.global_step}. Lower --model.lr, "
                "lengthen the warm-up or clip gradients (--trainer.gradient_clip_val 1.0). Checkpoints of earlier "
                "epochs are kept."
            )
        super().on_train_epoch_end(trainer, pl_module)
        if not getattr(trainer, "fast_dev_run", False):
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save last.ckpt where the weights are whole: the user interrupts, or a process that decodes died."""
        if trainer.global_step and (isinstance(exception, KeyboardInterrupt) or _between_steps(exception, trainer)):
            self._save_last(trainer)
            log.info(
                "interrupted after step %d; go on with: python -m vitcls fit --ckpt_path %s",
                trainer.global_step,
                shlex.quote(os.path.relpath(str(self.dirpath))),
            )

    def _save_last(self, trainer: Trainer) -> None:
        assert self.dirpath is not None, "ModelCheckpoint.setup resolves it"
        trainer.save_checkpoint(Path(self.dirpath) / LAST)

    def state_dict(self) -> dict[str, Any]:
        """ModelCheckpoint's, and the tie-breaking value of the best epoch."""
        return {**super().state_dict(), "best_tie_break": self._best_tie_break}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, with the paths of where the run folder is now."""
        at_home = self._at_home(state_dict)
        if Path(at_home["best_model_path"]).is_file():  # else there is no best to be better than
            super().load_state_dict(at_home)
            self._best_tie_break = state_dict["best_tie_break"]

    def _at_home(self, state: dict[str, Any]) -> dict[str, Any]:
        then, now = state.get("dirpath"), self.dirpath
        if then is None or now is None or then == str(now):
            return state

        def moved(path: str) -> str:
            return str(Path(now) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        scores = {moved(path): score for path, score in state["best_k_models"].items()}
        return {**state, "dirpath": now, "best_k_models": scores, **{k: moved(state[k]) for k in paths}}


def _between_steps(exception: BaseException, trainer: Trainer) -> bool:
    """Whether a worker of the only training process died; others would not know of it, and saving waits for all."""
    return isinstance(exception, DeadWorkerError) and trainer.training and trainer.world_size == 1
