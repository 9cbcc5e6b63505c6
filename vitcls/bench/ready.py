"""Batches that lie ready in memory, as a datamodule: what a training costs without its data."""

from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from vitcls.data.asked import Classifier
from vitcls.data.loaders import TimedLoader
from vitcls.types import Batch, Task


class ReadyBatches(Dataset[Batch]):
    """Normalised noise with labels; a whole batch is taken at once and nothing is copied.

    Args:
        batches: how many.
        batch_size: B.
        side: S, pixels.
        classes: K.
        task: the labels are (B,) int64, of multilabel (B, K) float32.
    """

    def __init__(self, batches: int, batch_size: int, side: int, classes: int, task: Task) -> None:
        self._size = batch_size
        random = torch.Generator().manual_seed(0)
        self.batches = [self._batch(side, classes, task, random) for _ in range(batches)]

    def _batch(self, side: int, classes: int, task: Task, random: torch.Generator) -> Batch:
        labels = torch.randint(classes, (self._size,), generator=random)
        return Batch(
            pixel_values=torch.randn(self._size, 3, side, side, generator=random),
            labels=labels if task == "multiclass" else torch.nn.functional.one_hot(labels, classes).float(),
            ids=torch.arange(self._size),
            bad=[],
        )

    def __len__(self) -> int:
        return len(self.batches) * self._size

    def __getitems__(self, rows: list[int]) -> Batch:
        """The batch of these consecutive rows."""
        return self.batches[rows[0] // self._size]


class ReadyData(LightningDataModule):
    """What a ViTClassifier and the callbacks of a fit ask of its data.

    Args:
        batches: of an epoch.
        batch_size: B.
        classes: K.
    """

    def __init__(self, batches: int, batch_size: int, classes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hparams.update(on_bad_image="error", streaming=False, cache="none")
        self.labels = [f"class_{i}" for i in range(classes)]
        self.splits: dict[str, ReadyBatches] = {}

    def setup(self, stage: str) -> None:
        """Draw the batches in the model's size."""
        assert self.trainer is not None, "a Trainer calls this"
        model = cast(Classifier, self.trainer.lightning_module)
        make = partial(ReadyBatches, side=model.image_spec.size, classes=len(self.labels), task=model.task)
        self.image_spec = model.image_spec
        self.splits = {
            "train": make(self.hparams["batches"], self.hparams["batch_size"]),
            "validation": make(1, self.hparams["batch_size"]),
        }

    def train_dataloader(self) -> TimedLoader:
        """The batches in order."""
        return self._loader("train")

    def val_dataloader(self) -> TimedLoader:
        """One batch: a validation is no part of what is timed, but the best epoch needs its figures."""
        return self._loader("validation")

    def _loader(self, role: str) -> TimedLoader:
        return TimedLoader(self.splits[role], batch_size=self.hparams["batch_size"], collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:  # ReadyBatches gives it whole
    return batch
