"""best.ckpt and last.ckpt of a run."""

import logging
import os
import shlex
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vitcls.runs import BEST, LAST

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with the files of a run folder: the best by a metric, and the last.

    An interrupted training saves last.ckpt before it ends. A run folder that was moved or renamed
    keeps its best score when it is resumed.

    Args:
        monitor: validation metric that chooses the best epoch.
        mode: whether the best is its `max` or its `min`.
        dirpath: folder; not given: the run folder.
    """

    def __init__(
        self,
        monitor: str = "val/accuracy",
        mode: Literal["min", "max"] = "max",
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save last.ckpt when the user interrupts, not when something broke."""
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step and self.dirpath is not None:
            trainer.save_checkpoint(Path(self.dirpath) / LAST)
            log.info(
                "interrupted after step %d; go on with: python -m vitcls fit --ckpt_path %s",
                trainer.global_step,
                shlex.quote(os.path.relpath(self.dirpath)),
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, with the paths of where the run folder is now."""
        super().load_state_dict(self._at_home(state_dict))

    def _at_home(self, state: dict[str, Any]) -> dict[str, Any]:
        then, now = state.get("dirpath"), self.dirpath
        if then is None or now is None or then == str(now):
            return state

        def moved(path: str) -> str:
            return str(Path(now) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        scores = {moved(path): score for path, score in state["best_k_models"].items()}
        return {**state, "dirpath": now, "best_k_models": scores, **{k: moved(state[k]) for k in paths}}
