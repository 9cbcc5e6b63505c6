"""best.ckpt and last.ckpt of a run."""

import logging
import os
import shlex
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vitcls.callbacks.checkpoint_io import AtomicCheckpointIO, remove_unfinished
from vitcls.callbacks.interrupt import can_be_left
from vitcls.data.dead_workers import DeadWorkerError
from vitcls.errors import UserError
from vitcls.runs import BEST, LAST, PREVIOUS

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with the files of a run folder: the best by a metric, and the last.

    last.ckpt is saved after each epoch, in a long epoch also between two of its optimiser steps, and before an
    interrupted training ends. While the training runs, previous.ckpt is the last.ckpt before it, for the case that
    the disk loses the newer one; so the folder takes the room of three checkpoints, and of a fourth while one is
    written. A run folder that was moved or renamed keeps its best score when it is resumed.

    Args:
        monitor: validation metric that chooses the best epoch; `epoch` keeps the last one, whatever its figures.
        mode: whether the best is its `max` or its `min`.
        tie_break: metric whose smaller value decides between epochs with the same score. A small
            validation set makes ties: of 50 images, one is 2 points of accuracy.
        dirpath: folder; not given: the run folder.
        every_minutes: how old last.ckpt may become within an epoch, above 0: what a crash costs.
        every_n_steps: the same in optimiser steps, at least 1; not given: time alone counts.
    """

    def __init__(
        self,
        monitor: str = "val/accuracy",
        mode: Literal["min", "max"] = "max",
        tie_break: str = "val/loss",
        dirpath: str | None = None,
        every_minutes: float = 15.0,
        every_n_steps: int | None = None,
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
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self._best_tie_break = float("inf")
        self._last_saved: tuple[float, int | None] = (monotonic(), None)  # time, and the optimiser step
        self._files = AtomicCheckpointIO()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have checkpoints written whole or not at all.

        Raises:
            UserError: an interval is out of range.
        """
        if not self.every_minutes > 0 or (self.every_n_steps is not None and self.every_n_steps < 1):
            raise UserError(
                f"RunCheckpoint saves every {self.every_minutes} minutes and {self.every_n_steps} steps: every_minutes "
                "must be above 0, every_n_steps at least 1 or null."
            )
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user chose
            trainer.strategy.checkpoint_io = self._files
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            remove_unfinished(Path(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The age of last.ckpt counts from here."""
        super().on_train_start(trainer, pl_module)
        self._last_saved = (monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save last.ckpt where it is due; after an epoch's last step its end does so anyway."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not can_be_left(trainer, batch_idx) or _logs_now(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self._is_due(trainer.global_step), all=False):
            self._save_last(trainer)

    def _is_due(self, step: int) -> bool:
        saved_at, saved_step = self._last_saved
        by_steps = self.every_n_steps is not None and step - (saved_step or 0) >= self.every_n_steps
        return by_steps or monotonic() - saved_at >= 60 * self.every_minutes

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
        was_validated = self.monitor in trainer.callback_metrics or not str(self.monitor).startswith("val/")
        if was_validated:  # not where trainer.max_steps ends within an epoch: Lightning would warn of the monitor
            super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training is over and its last.ckpt on the disk: the one before it is of no more use."""
        super().on_train_end(trainer, pl_module)
        self._raise_unwritten(trainer)
        if trainer.is_global_zero and self.dirpath is not None and (Path(self.dirpath) / LAST).is_file():
            (Path(self.dirpath) / PREVIOUS).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save last.ckpt where the weights are whole: the user interrupts, or a process that decodes died."""
        if trainer.global_step and (isinstance(exception, KeyboardInterrupt) or _between_steps(exception, trainer)):
            if self._last_saved[1] not in (None, trainer.global_step):  # None: nothing has been trained yet
                self._save_last(trainer)
            log.info(
                "interrupted after step %d; go on with: python -m vitcls fit --ckpt_path %s",
                trainer.global_step,
                shlex.quote(os.path.relpath(str(self.dirpath))),
            )

    def last_saved(self) -> str | None:
        """The file of the last checkpoint and its step, for a sentence; None where there is none."""
        file, step = Path(str(self.dirpath)) / LAST, self._last_saved[1]
        return f"{file}, of step {step}" if step and file.is_file() else None

    def _save_last(self, trainer: Any) -> None:
        if trainer.fast_dev_run:
            return
        assert self.dirpath is not None, "ModelCheckpoint.setup resolves it"
        trainer.save_checkpoint(Path(self.dirpath) / LAST)
        self._last_saved = (monotonic(), trainer.global_step)
        self._raise_unwritten(trainer)

    def _raise_unwritten(self, trainer: Trainer) -> None:
        """End all processes where the first one, which writes, could not."""
        reason = trainer.strategy.broadcast(self._files.unwritten)
        if reason:
            raise UserError(reason)

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


def _logs_now(trainer: Any) -> bool:
    """Whether the figures of this step are about to be logged: a crash between would leave them out of the curves.

    Where each step is logged, there is no better one to wait for.
    """
    return trainer.log_every_n_steps > 1 and trainer.global_step % trainer.log_every_n_steps == 0


def _between_steps(exception: BaseException, trainer: Trainer) -> bool:
    """Whether a worker of the only training process died; others would not know of it, and saving waits for all."""
    return isinstance(exception, DeadWorkerError) and trainer.training and trainer.world_size == 1
