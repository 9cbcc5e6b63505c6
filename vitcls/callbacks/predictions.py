"""Predictions -> one CSV file, a row for each input, whatever the number of processes."""

import csv
import heapq
import logging
import os
from collections.abc import Iterator
from itertools import chain, compress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from vitcls.data.rows import Images
from vitcls.errors import UserError
from vitcls.together import failing_together
from vitcls.types import TOP, Batch, Predictions, Task

log = logging.getLogger(__name__)

DELIMITER = "|"  # between the names in the column `labels`


class PredictionWriter(BasePredictionWriter):
    """Writes each batch as it comes; the finished file appears at the end, in the order of the inputs.

    Columns: id, file, label, score (of the best class, 0..1), then label_2, score_2, ... of the next
    best, and error, which says why an image could not be decoded. Of multilabel data there is also
    `labels`, before the best class: the names of those that reach their threshold, joined by `|`, which
    in a name is written with a backslash before it.

    Args:
        output: the CSV file; replaced if it exists.

    Raises:
        UserError: the suffix is not .csv, or its folder does not exist.
    """

    def __init__(self, output: str) -> None:
        super().__init__(write_interval="batch")
        self._output = Path(output).expanduser()
        if self._output.suffix != ".csv":
            raise UserError(f"--output {output!r} must end in .csv.")
        if not self._output.parent.is_dir():
            raise UserError(
                f"--output {output!r}: the folder {str(self._output.parent)!r} does not exist; make it first."
            )
        if self._output.is_dir() or not os.access(self._output.parent, os.W_OK):
            raise UserError(f"--output {output!r} cannot be written: it is a folder, or lies in one that is read-only.")
        self._file: Any = None
        self._columns: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this process's part, for the columns that the model's task has.

        Raises:
            UserError: the first process, which merges the parts, does not see them all.
        """
        self._columns = _columns(pl_module.hparams["labels"], pl_module.hparams["task"])
        self._file = self._part(trainer.global_rank).open("w", newline="", encoding="utf-8", errors="surrogateescape")
        trainer.strategy.barrier("parts")
        with failing_together():
            if trainer.is_global_zero:
                self._check_parts(trainer.world_size)

    def _check_parts(self, processes: int) -> None:
        unseen = [rank for rank in range(processes) if not self._part(rank).is_file()]
        if unseen:
            raise UserError(
                f"--output {str(self._output)!r} must be on a disk that all machines see: what process {unseen[0]} "
                "writes beside it is not there."
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Predictions,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch, in the order of its ids."""
        images: Images = trainer.datamodule.predict_images  # type: ignore[attr-defined]
        labels: list[str] = pl_module.hparams["labels"]
        writer = csv.writer(self._file)
        writer.writerows(
            sorted(chain(_good_rows(prediction, images, labels), _bad_rows(prediction, len(self._columns) - 3)))
        )
        self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of all processes into the output."""
        self._file.close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            rows, bad = self._merge(parts)
            for part in parts:
                part.unlink()
            log.info(
                "%d rows in %s%s",
                rows,
                self._output,
                f"; {bad} of them could not be read: see its column error" if bad else "",
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._file is not None:
            self._file.close()
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _merge(self, parts: list[Path]) -> tuple[int, int]:
        """(rows, rows with an error) written; one row of each part is in memory at a time."""
        rows = bad = 0
        finished = self._output.with_name(f".{self._output.name}.new")
        with finished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns)
            for row in heapq.merge(*map(_read, parts), key=lambda row: int(row[0])):
                writer.writerow(row)
                rows += 1
                bad += bool(row[-1])
        finished.replace(self._output)
        return rows, bad

    def _part(self, rank: int) -> Path:
        return self._output.with_name(f".{self._output.name}.part{rank}")


def _columns(labels: list[str], task: Task) -> list[str]:
    further = [f"{name}_{place}" for place in range(2, min(TOP, len(labels)) + 1) for name in ("label", "score")]
    several = ["labels"] if task == "multilabel" else []
    return ["id", "file", *several, "label", "score", *further, "error"]


def _good_rows(prediction: Predictions, images: Images, labels: list[str]) -> Iterator[list[Any]]:
    several = _present(prediction, labels)
    for row, present, scores, classes in zip(
        prediction["ids"].tolist(),
        several,
        prediction["scores"].tolist(),
        prediction["classes"].tolist(),
        strict=True,
    ):
        best = chain.from_iterable((labels[c], f"{s:.6f}") for c, s in zip(classes, scores, strict=True))
        yield [row, images.name(row), *present, *best, ""]


def _present(prediction: Predictions, labels: list[str]) -> list[list[str]]:
    """The column `labels` of each row; multiclass: none."""
    if prediction["present"] is None:
        return [[]] * len(prediction["ids"])
    names = [label.replace(DELIMITER, "\\" + DELIMITER) for label in labels]
    return [[DELIMITER.join(compress(names, row))] for row in prediction["present"].tolist()]


def _bad_rows(prediction: Predictions, empty: int) -> Iterator[list[Any]]:
    for image in prediction["bad"]:
        yield [image.id, image.name, *[""] * empty, image.cause]


def _read(part: Path) -> Iterator[list[str]]:
    with part.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.reader(file)
