"""The LightningDataModule: a source, its splits, and the way of an image to the device."""

import contextlib
import logging
import os
import signal
from dataclasses import fields
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from vitcls.data import columns
from vitcls.data.choice import SourceChoice
from vitcls.data.collate import collate
from vitcls.data.files import image_files
from vitcls.data.preprocess import ImageSpec, Resize
from vitcls.data.rows import FileImages, ImageRows, TableImages
from vitcls.data.sampling import SharedEvenly, check_enough
from vitcls.data.sources import Source
from vitcls.data.splits import Split, fingerprint, matched
from vitcls.data.transforms import train_transform
from vitcls.errors import UserError, check_range, listing
from vitcls.types import BadImage, Batch

log = logging.getLogger(__name__)

MOST_WORKERS = 8  # beyond, a photo pipeline waits for the device or the disk, not for cores


class Classifier(Protocol):
    """What the data asks of the model that it is joined with."""

    @property
    def labels(self) -> list[str] | None:
        """Its class names in output order, if it has some already."""

    @property
    def image_spec(self) -> ImageSpec:
        """How it wants its images."""


class ImageDataModule(LightningDataModule):
    """Labelled images from the Hub, a local dataset or folders, as batches for a classifier.

    Args:
        dataset: Hub id, or a local folder that `datasets.load_dataset` understands (train/, test/
            and validation/ folders with a folder of images for each class; parquet files), or
            `digits`.
        config_name: configuration of a Hub dataset that has several.
        revision: branch, tag or commit of a Hub dataset.
        train_dir: folder with a sub-folder of training images for each class, instead of `dataset`.
        validation_dir: the same for validation.
        test_dir: the same for testing.
        train_split: split to train on; expressions such as `train[:5000]` work, here and below.
        validation_split: split to validate on. Not given: the split called validation, if there is
            one and it is not the test split; else a share of the training split.
        test_split: split to test on. Not given: the split called test.
        validation_fraction: share of the training rows to validate on, stratified by class, where
            there is no validation set; in (0, 1).
        split_seed: chooses the rows of that share and of the limits. Apart from the run's seed, so
            that runs with different seeds validate on the same images.
        train_limit: most images to train on, stratified by class.
        eval_limit: most images to validate or test on, stratified by class.
        image_column: column of the images, where it is not the only one.
        label_column: column of the classes, where it is not the only one.
        resize: how an image becomes square for evaluation: `squash`, `crop` (the centre) or
            `letterbox`. Not given: as the checkpoint's image processor does.
        crop_scale: smallest and largest share of an image's area that a random training crop
            covers, in (0, 1]. The default is Szegedy et al.'s (arXiv:1409.4842, section 6); gentler
            crops overfit small sets of photos, which a validation set with near duplicates hides.
        flip: probability that a training image is mirrored, in 0..1.
        batch_size: B of one process and one step; times processes and accumulated batches gives
            the images of an optimiser step.
        eval_batch_size: B of validation, test and predict; not given: `batch_size`.
        num_workers: processes that decode, for each training process. Not given: the cores that
            this process may use, shared among the training processes of the machine, at most 8.
        predict: image file, or folder that is searched with all its sub-folders, to predict.
    """

    def __init__(
        self,
        dataset: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        train_dir: str | None = None,
        validation_dir: str | None = None,
        test_dir: str | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        resize: Resize | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        predict: str | None = None,
    ) -> None:
        super().__init__()
        # Checkpoints are read with weights_only=True: plain values only, no Path.
        dataset, train_dir, validation_dir = map(_as_text, (dataset, train_dir, validation_dir))
        test_dir, predict = map(_as_text, (test_dir, predict))
        self.save_hyperparameters()
        check_range("data.validation_fraction", validation_fraction, 0 < validation_fraction < 1, "between 0 and 1")
        check_range(
            "data.crop_scale", crop_scale, 0 < crop_scale[0] <= crop_scale[1] <= 1, "two rising numbers in (0, 1]"
        )
        check_range("data.flip", flip, 0 <= flip <= 1, "between 0 and 1")
        check_range("data.num_workers", num_workers, num_workers is None or num_workers >= 0, "at least 0")
        for name in ("batch_size", "eval_batch_size", "train_limit", "eval_limit"):
            value = self.hparams[name]
            check_range(f"data.{name}", value, value is None or value >= 1, "at least 1")
        self._choice = SourceChoice(**{field.name: self.hparams[field.name] for field in fields(SourceChoice)})
        self._labels: list[str] | None = None
        self._image_spec: ImageSpec | None = None
        self._opened: dict[str, Split] = {}
        self.splits: dict[str, Split] = {}
        self.predict_images: FileImages | None = None

    @property
    def _attached(self) -> Trainer:
        assert self.trainer is not None, "a Trainer calls this"
        return self.trainer

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes in output order: the model's if it has some, else the training data's.

        None before `setup`, and after a `setup` for predict of a model without labels.
        """
        return self._labels

    @property
    def image_spec(self) -> ImageSpec:
        """The preprocessing in force: the model's, with `resize` applied. Known after `setup`."""
        assert self._image_spec is not None, "setup() comes first"
        return self._image_spec

    def prepare_data(self) -> None:
        """Fetch what `setup` will open, in one process for each machine."""
        if self._attached.world_size > 1:
            with contextlib.suppress(UserError):  # `setup` finds the same mistake, and in every process
                self._open_stage(self._attached.state.fn)

    def setup(self, stage: str) -> None:
        """Open the splits that the stage needs and match their classes with the model's.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            UserError: data that is missing, ambiguous or has classes unknown to the model.
        """
        self._open_stage(stage)
        for role, split in self.splits.items():
            seen = len(np.unique(split.class_ids))
            log.info("%s: %d images, %d of %d classes", role, len(split), seen, len(self._labels or ()))
        if self.predict_images is not None:
            log.info("predict: %d files", len(self.predict_images))

    def _open_stage(self, stage: str | None) -> None:
        model = cast(Classifier, self._attached.lightning_module)
        self._image_spec = model.image_spec.resized(self.hparams["resize"])
        self._labels = self._labels or model.labels
        if stage == "predict":
            self.predict_images = self._open_predict()
        if stage == "fit":
            self.splits["train"], self.splits["validation"] = self._fit_splits()
        if stage == "validate":
            self.splits["validation"] = self._validation_split()
        if stage == "test":
            self.splits["test"] = self._open("test").limited(self.hparams["eval_limit"], self.hparams["split_seed"])

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented; processes share the rows by torch's DistributedSampler."""
        split = self.splits["train"]
        transform = train_transform(
            spec=self.image_spec, crop_scale=tuple(self.hparams["crop_scale"]), flip=self.hparams["flip"]
        )
        rows = ImageRows(TableImages(split), transform, split.class_ids)
        sampler: DistributedSampler | None = None
        if self._attached.world_size > 1:
            sampler = DistributedSampler(
                rows,
                self._attached.world_size,
                self._attached.global_rank,
                seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
            )
        return self._loader(rows, batch_size=self.hparams["batch_size"], shuffle=sampler is None, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """In order, each row once over all processes."""
        return self._eval_loader(self.splits["validation"])

    def test_dataloader(self) -> DataLoader:
        """In order, each row once over all processes."""
        return self._eval_loader(self.splits["test"])

    def predict_dataloader(self) -> DataLoader:
        """The files of `predict`, in the order of their paths."""
        assert self.predict_images is not None
        rows = ImageRows(self.predict_images, self.image_spec.eval_transform)
        sampler: DistributedSampler | None = None
        if self._attached.world_size > 1:
            check_enough(len(rows), self._attached.world_size)
            sampler = UnrepeatedDistributedSampler(
                rows, self._attached.world_size, self._attached.global_rank, shuffle=False
            )
        return self._loader(rows, batch_size=self._eval_batch_size, sampler=sampler)

    def example_pixels(self, count: int) -> Tensor:
        """The first validation images as the network takes them: (B, 3, S, S) float32, B <= `count`."""
        split = self.splits["validation"]
        rows = ImageRows(TableImages(split), self.image_spec.eval_transform, split.class_ids)
        batch = collate([rows[position] for position in range(min(count, len(rows)))])
        return self.image_spec.normalise(batch["pixel_values"])

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Outside predict, an image that cannot be decoded ends the run by its name.

        Raises:
            UserError: names the image and the cause.
        """
        if batch["bad"] and not self._attached.predicting:
            raise _unreadable(batch["bad"])
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device: uint8 -> float32."""
        if len(batch["ids"]):
            batch["pixel_values"] = self.image_spec.normalise(batch["pixel_values"])
        return batch

    def _fit_splits(self) -> tuple[Split, Split]:
        train, validation = self._open("train"), self._choice.validation()
        if validation is None:
            train, share = train.carved(self.hparams["validation_fraction"], self.hparams["split_seed"])
        else:
            share = self._open("validation")
        _check_disjoint(train, share)
        if len(self._labels or ()) < 2:
            raise UserError(f"The training data has one class only ({self._labels}); a classifier needs two or more.")
        return (
            train.limited(self.hparams["train_limit"], self.hparams["split_seed"]),
            share.limited(self.hparams["eval_limit"], self.hparams["split_seed"]),
        )

    def _validation_split(self) -> Split:
        if self._choice.validation() is not None:
            split = self._open("validation")
            return split.limited(self.hparams["eval_limit"], self.hparams["split_seed"])
        return self._fit_splits()[1]

    def _open(self, role: str) -> Split:
        """The whole split of a role, opened once."""
        if role not in self._opened:
            self._opened[role] = self._read(role)
        return self._opened[role]

    def _read(self, role: str) -> Split:
        source, split_name = self._source(role)
        table = source.load(split_name)
        if not len(table):
            raise UserError(f"The {role} split ({split_name!r}) has no rows; give data with images in it.")
        image_column = columns.image_column(table.features, self.hparams["image_column"])
        label_column = columns.label_column(table.features, self.hparams["label_column"])
        found = columns.labelled(table, label_column, where=role)
        labels = self._labels or found.names
        if role == "train":
            self._labels = labels
        return Split(
            name=split_name,
            table=table,
            rows=np.arange(len(table)),
            class_ids=matched(found.names, found.ids, labels, role),
            image_column=image_column,
            fingerprint=fingerprint(table, image_column, found.names, found.ids),
        )

    def _source(self, role: str) -> tuple[Source, str]:
        """Where a role's rows come from, and the split expression there."""
        found = {"train": self._choice.train, "validation": self._choice.validation, "test": self._choice.test}[role]()
        assert found is not None, "a carved validation split is not opened"
        return found

    def _open_predict(self) -> FileImages:
        if self.hparams["predict"] is None:
            raise UserError("Nothing to predict: give --data.predict with an image file or a folder.")
        return FileImages(image_files(self.hparams["predict"]))

    @property
    def _eval_batch_size(self) -> int:
        return self.hparams["eval_batch_size"] or self.hparams["batch_size"]

    def _eval_loader(self, split: Split) -> DataLoader:
        rows = ImageRows(TableImages(split), self.image_spec.eval_transform, split.class_ids)
        if self._attached.world_size == 1:
            return self._loader(rows, batch_size=self._eval_batch_size)
        shares = SharedEvenly(len(rows), self._eval_batch_size, self._attached.world_size, self._attached.global_rank)
        return self._loader(rows, batch_sampler=shares)

    def _loader(self, rows: ImageRows, **kwargs: Any) -> DataLoader:
        workers = self._workers()
        return DataLoader(
            rows,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._attached.strategy.root_device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=partial(_start_worker, rank=self._attached.global_rank),
            **kwargs,
        )

    def _workers(self) -> int:
        if self.hparams["num_workers"] is not None:
            return self.hparams["num_workers"]
        return min(MOST_WORKERS, max(1, _cores() // self._attached.num_devices))


def _start_worker(worker_id: int, rank: int) -> None:
    # Ctrl-C reaches the whole process group; the trainer decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pl_worker_init_function(worker_id, rank)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # honours taskset and SLURM; Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_text(path: object) -> str | None:
    return None if path is None else str(path)


def _check_disjoint(train: Split, validation: Split) -> None:
    if validation.overlaps(train.record()):
        raise UserError(
            f"Rows of {train.name!r} would be trained on and validated on ({validation.name!r}); the best epoch "
            "would be chosen by what was learned by heart. Give splits without common rows."
        )


def _unreadable(bad: list[BadImage]) -> UserError:
    named = listing((f"{image.name}: {image.cause}" for image in bad), 3)
    return UserError(f"An image cannot be decoded: {named}. Replace it or remove it from the data.", True)
