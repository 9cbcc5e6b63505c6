"""The logits of a whole test, brought together from all processes."""

from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from vitcls.together import at_first_process
from vitcls.types import Batch


class TestAnswers(Callback):
    """Keeps what the network said of each test image; after the test the first process has all of it.

    Attributes:
        ids: (N,) int64 rows of the split, ascending; none in the other processes.
        logits: (N, K) float32, in the order of `ids`.
    """

    __test__ = False  # no tests, whatever pytest makes of its name

    def __init__(self) -> None:
        self.ids: NDArray[np.int64] = np.empty(0, np.int64)
        self.logits: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._parts: list[tuple[Tensor, Tensor]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the logits of a batch."""
        if len(batch["ids"]):
            self._parts.append((batch["ids"].cpu(), cast(Tensor, outputs).float().cpu()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring them together."""
        self.ids, self.logits = joined([part for of_one in at_first_process(self._parts) for part in of_one])
        self._parts = []


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids (B,) and logits (B, K) of batches -> (N,) int64, ascending, and (N, K) float32 in their order."""
    if not parts:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    ids, logits = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    order = np.argsort(ids)
    return ids[order], logits[order]
