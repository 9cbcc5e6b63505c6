"""How many images could not be decoded, among the figures of each stage."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vitcls.types import Batch


class BadImageCount(Callback):
    """Logs `train/bad_images`, `val/bad_images` or `test/bad_images` where bad images do not end the run."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count those of a batch."""
        _count(trainer, pl_module, "train", batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Count those of a batch."""
        _count(trainer, pl_module, "val", batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Count those of a batch."""
        _count(trainer, pl_module, "test", batch)


def _count(trainer: Any, pl_module: LightningModule, stage: str, batch: Batch) -> None:
    if trainer.datamodule.hparams["on_bad_image"] != "error":
        bad = float(len(batch["bad"]))
        pl_module.log(
            f"{stage}/bad_images",
            bad,
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
            batch_size=1,
        )
