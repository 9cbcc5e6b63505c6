"""Predictions -> one file, a row for each input, whatever the number of processes and of attempts."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from vitcls.data.rows import Inputs
from vitcls.decisions import UNKNOWN
from vitcls.errors import Interrupted, UserError, listing
from vitcls.models.features import check_embeddings, feature_width
from vitcls.predictions.formats import FORMATS
from vitcls.predictions.options import PredictOptions, check_for_model
from vitcls.predictions.parts import Part, Parts
from vitcls.predictions.record import check_record, digest_of, keep_record
from vitcls.predictions.rows import Row, Shape, shape_of
from vitcls.predictions.sorting import check_apart, check_folder, sort_into
from vitcls.together import check_same, failing_together
from vitcls.types import Batch, Predictions

log = logging.getLogger(__name__)

_AT_ONCE = 1000  # rows that are in memory when the parts become the output; a group of a parquet file


class PredictionWriter(BasePredictionWriter):
    """Writes each batch as it comes; the finished file appears at the end, in the order of the inputs.

    Until then the batches are in a folder beside it, a file for each process, from which a predict that was
    interrupted goes on.

    Args:
        options: of predict.

    Raises:
        UserError: the suffix is of no format, or a folder does not exist or cannot be written.
    """

    def __init__(self, options: PredictOptions) -> None:
        super().__init__(write_interval="batch")
        _check_output(options.output)
        if options.sort_into is not None:
            check_folder(options.sort_into, options.resumes)
            if options.sort_into.resolve() == options.output.resolve():
                raise UserError(
                    f"--sort_into and --output are both {str(options.output)!r}; one is a folder, one a file."
                )
        self._options = options
        self._parts = Parts(options.output)
        self._attempt = 1
        self._part: Part | None = None
        self._images: Inputs
        self._record: dict[str, Any] = {}  # in the first process

    @property
    def is_finished(self) -> bool:
        """Whether a predict that is to go on has an output already, and nothing beside it that is unfinished."""
        return self._options.resumes and self._options.output.is_file() and not self._parts.folder.is_dir()

    # -- before -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The images are known: tell their datamodule which are done.

        Raises:
            UserError: rows of a table cannot be sorted into folders, nor files into the folder that they come from.
        """
        self._images = trainer.datamodule.predict_images  # type: ignore[attr-defined]
        if self._options.sort_into is not None and not self._images.are_files:
            raise UserError(
                "--sort_into links files, but what is to be predicted are rows of a table with the images inside; "
                "leave it out, or save them as files."
            )
        if self._options.sort_into is not None:
            check_apart(self._options.sort_into, trainer.datamodule.hparams["predict"])  # type: ignore[attr-defined]
        pl_module.asked = self._options.asked  # type: ignore[assignment]
        done = self._parts.done()
        check_same(
            "What an interrupted predict left", f"{len(done)} rows", "Put --output on a disk that all of them see."
        )
        if len(done) and self._options.resumes:
            self._attempt = self._parts.attempt()
            trainer.datamodule.predicted = done  # type: ignore[attr-defined]
            log.info("%d of them are done already", len(done))
        elif len(done):
            log.info(
                "%d rows that an interrupted predict left in %s will be deleted; --resume true would go on with them",
                len(done),
                self._parts.folder,
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are known: refuse what does not fit them.

        Raises:
            UserError: an option that the model's classes or network rule out, or parts of something else.
        """
        labels, task = pl_module.hparams["labels"], pl_module.hparams["task"]
        check_for_model(self._options, labels, task)
        width = 0
        if self._options.asked.embeddings:
            check_embeddings(pl_module.network)
            width = feature_width(pl_module.network)
        self._shape = shape_of(labels, task, self._options.asked, width)
        with failing_together():
            if trainer.is_global_zero:
                self._record = _record(trainer, pl_module, self._shape, self._images)
                self._check_record()
        if self.is_finished:
            if trainer.is_global_zero:
                log.info("%s is finished; without --resume it would be made anew", self._options.output)
            raise SystemExit(0)  # how Lightning lets go of a loop that has nothing to do

    def _check_record(self) -> None:
        if self.is_finished:
            record = self._record | _of_output(self._options)
            check_record(self._parts.record_of_output, record, f"the finished {str(self._options.output)!r}")
        elif self._attempt > 1:
            left = f"what an interrupted predict left in {str(self._parts.folder)!r}"
            check_record(self._parts.record, self._record, left)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing more can be refused: make this process's part.

        Raises:
            UserError: the first process, which merges the parts, does not see them all.
        """
        with failing_together():
            if trainer.is_global_zero:
                self._make_folder()
        self._parts.folder.mkdir(exist_ok=True)  # is there, unless this machine has a disk of its own; told below
        self._part = Part(self._parts.file(self._attempt, trainer.global_rank), self._shape)
        trainer.strategy.barrier("parts")
        with failing_together():
            if trainer.is_global_zero:
                self._check_parts(trainer.world_size)

    def _make_folder(self) -> None:
        if self._attempt == 1:
            self._parts.remove()
        with self._written():
            self._parts.folder.mkdir(exist_ok=True)
            keep_record(self._parts.record, self._record)

    def _check_parts(self, processes: int) -> None:
        unseen = [rank for rank in range(processes) if not self._parts.file(self._attempt, rank).is_file()]
        if unseen:
            raise UserError(
                f"--output {str(self._options.output)!r} must be on a disk that all machines see: what process "
                f"{unseen[0]} writes beside it is not there."
            )

    # -- meanwhile --------------------------------------------------------------------------

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
        """Append a batch, in the order of its ids.

        Raises:
            Interrupted: SIGTERM came; Lightning's loop does not look.
        """
        assert self._part is not None
        with self._written():
            self._part.append(prediction, [self._images.name(row) for row in prediction["ids"].tolist()])
        batch_indices.clear()  # Lightning keeps those of all batches: of a million images, 36 MB
        if trainer.received_sigterm:
            raise Interrupted(signal.SIGTERM)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what can be gone on with; leave nothing behind where that is nothing."""
        if self._part is None:
            return
        with suppress(OSError):  # of a disk that is full, which is what the exception says
            self._part.close()
        done = len(self._parts.done())
        if done:
            log.info("%d of %d rows are kept; the same command with --resume true goes on", done, len(self._images))
        else:
            self._parts.remove()

    # -- after ------------------------------------------------------------------------------

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the output of the parts of all processes, and then the links."""
        assert self._part is not None
        with self._written():
            self._part.close()
        trainer.strategy.barrier("predictions")
        with failing_together():
            if trainer.is_global_zero:
                self._finish()

    def _finish(self) -> None:
        with self._written():
            self._write_output()
        if self._options.sort_into is not None:
            labels = [*self._shape.labels, *([] if self._options.abstain is None else [UNKNOWN])]
            sort_into(self._options.sort_into, self._rows(), labels)
        keep_record(self._parts.record_of_output, self._record | _of_output(self._options))
        self._parts.remove()

    def _write_output(self) -> None:
        output = self._options.output
        finished = output.with_name(f".{output.name}.new")
        file = FORMATS[output.suffix](finished, self._shape)
        count = bad = unknown = 0
        for rows in _groups(self._rows()):
            file.write(rows)
            count += len(rows)
            bad += sum(bool(row.error) for row in rows)
            unknown += sum(bool(row.best) and row.label != row.best[0][0] for row in rows)
        file.close()
        finished.replace(output)
        told = f"; {bad} of them could not be read: see its column error" if bad else ""
        told += f"; {unknown} are below --abstain {self._options.abstain}" if unknown else ""
        log.info("%d rows in %s%s", count, output, told)

    def _rows(self) -> Iterator[Row]:
        return self._parts.rows(self._shape, UNKNOWN, self._options.abstain or 0.0)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Say of a disk that is full what to do."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--output {str(self._options.output)!r} could not be written ({error}); mend that, then go on with "
                "--resume true.",
                of_one_process=True,
            ) from error


def _check_output(output: Path) -> None:
    if output.suffix not in FORMATS:
        raise UserError(f"--output {str(output)!r} must end in {listing(FORMATS)}.")
    if not output.parent.is_dir():
        raise UserError(f"--output {str(output)!r}: the folder {str(output.parent)!r} does not exist; make it first.")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UserError(
            f"--output {str(output)!r} cannot be written: it is a folder, or lies in one that is read-only."
        )


def _record(trainer: Trainer, model: LightningModule, shape: Shape, images: Inputs) -> dict[str, Any]:
    """What decides the rows, by the words of a user."""
    said = model.hparams
    return {
        "images (--data.predict)": [len(images), images.digest()],
        "weights (--ckpt_path)": digest_of(model.state_dict()),
        "classes": [shape.labels, shape.task],
        "thresholds (--model.thresholds)": [said["thresholds"], model.figures_of_labels],
        "temperature (--model.temperature)": model.temperature,
        "preprocessing (--data.resize, --model.image_size)": said["image"],
        "views (--data.tta)": trainer.datamodule.hparams["tta"],  # type: ignore[attr-defined]
        "precision (--trainer.precision)": str(trainer.precision),
        "--top_k": shape.top,
        "--scores": shape.scores,
        "--embeddings": shape.width,
    }


def _of_output(options: PredictOptions) -> dict[str, Any]:
    """What else decides the output; the parts hold it for any of them."""
    return {"--abstain": options.abstain, "--sort_into": str(options.sort_into) if options.sort_into else None}


def _groups(rows: Iterator[Row]) -> Iterator[Sequence[Row]]:
    while group := list(islice(rows, _AT_ONCE)):
        yield group
