"""The LightningDataModule: a source, its splits, and the way of an image to the device."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from vitcls.data.arguments import check_arguments, check_features
from vitcls.data.asked import Classifier
from vitcls.data.bad_images import EVALUATION, BadImages, OnBadImage
from vitcls.data.cache import CacheKind
from vitcls.data.cache_building import split_images
from vitcls.data.choice import Places, SourceChoice, as_text
from vitcls.data.collate import collate
from vitcls.data.features import (
    FeatureRows,
    Features,
    NumberedRows,
    draws_of_view,
    extracted,
    numbered_collate,
)
from vitcls.data.inputs import images_to_predict
from vitcls.data.label_form import LabelForm
from vitcls.data.loaders import ResumableLoader, TimedLoader, image_loader, worker_count
from vitcls.data.mixing import BatchMixer, mixer_of
from vitcls.data.preprocess import ImageSpec
from vitcls.data.roles import Roles, RowChoice
from vitcls.data.rows import ImageRows, Images, Inputs
from vitcls.data.sampling import Draw, InOrder, SharedEvenly
from vitcls.data.seeding import run_seed
from vitcls.data.splits import Split
from vitcls.data.streamed import StreamedSplit
from vitcls.data.training import training_rows
from vitcls.data.transforms import Augment, Transform
from vitcls.errors import UserError
from vitcls.input_spec import Resize
from vitcls.together import check_same, failing_together
from vitcls.types import Batch, Sample, Targets

log = logging.getLogger(__name__)


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
        test_dir: the same for testing. Each of the three may be a list of folders.
        train_files: instead of folders or beside them, tables with a row for each image: .parquet or
            .arrow with the images inside, .csv, .tsv or .jsonl with a path (relative to the file) and a
            class. A file, a pattern such as `shards/*.parquet`, or a list of these.
        validation_files: the same for validation.
        test_files: the same for testing.
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
        label_delimiter: with `model.task: multilabel`, what separates the classes of an image in one
            string, such as `|`, where the column holds strings and no lists.
        streaming: reads the training rows while it trains on them, for sets larger than the disk: a dataset, or
            parquet `train_files`. Validation and test rows are fetched as ever, but only their own files.
        stream_buffer: images of a stream that are held, as files, to draw the next one from.
        train_rows: how many rows a stream has, where its metadata do not tell.
        resize: how an image becomes square for evaluation: `squash`, `crop` (the centre) or
            `letterbox`. Not given: as the checkpoint's image processor does.
        tta: test-time augmentation, for validate, test and predict: an image is also seen mirrored
            (`flip`), or as its corners and centre (`five_crop`), and its probabilities are the mean over
            these views; costs the time of as many forward passes. `model/` knows nothing of it.
        augment: of training images: `none`, `light` (random crop, mirrored at random), `standard` (and
            one of gray, solarised, blurred, with jittered colours) or `strong` (`light`, with two
            operations of RandAugment and random erasing).
        transforms: instead of `augment`, a list of torchvision.transforms.v2 by name, such as
            `[{name: RandomResizedCrop, size: 224}, {name: AugMix}]`, of (3, H, W) uint8 images.
        crop_scale: smallest and largest share of an image's area that a random training crop
            covers, in (0, 1]. The default is Szegedy et al.'s (arXiv:1409.4842, section 6); gentler
            crops overfit small sets of photos, which a validation set with near duplicates hides.
        crop_ratio: narrowest and widest aspect ratio of such a crop, width over height.
        flip: probability that a training image is mirrored, in 0..1.
        mixup: alpha of mixup, which blends two training images and their labels; 0: without; 0.2 and 0.8 are usual.
        cutmix: alpha of CutMix, which pastes a rectangle of another image; 0: without; 1 is usual. With
            both, each batch takes one of them. The training accuracy then counts the larger share, and of
            `multilabel` data the shares of at least a half.
        repeats: how often an epoch trains on each image, every time augmented anew.
        feature_views: how many augmented views of each training image the network's frozen part sees, once and
            before the training, while the head trains alone (`model.train: head`, or the first
            `model.freeze_epochs`): an epoch then takes one of these views of each image, and no image is
            decoded. 0: each epoch augments and computes anew.
        sampling: `shuffle` takes every training image; `balanced` draws the classes equally often, with
            replacement, for data in which some are rare.
        batch_size: B of one process and one step; times processes and accumulated batches gives
            the images of an optimiser step.
        eval_batch_size: B of validation, test and predict; not given: `batch_size`.
        num_workers: processes that decode, for each training process. Not given: the cores that
            this process may use, shared among the training processes of the machine, at most 8.
        cache: keeps the images, shrunk once to what the largest crop needs (256 pixels for an input of
            224), beside the cache of `datasets`: as `jpeg`, or as `raw` pixels, which are faster still and
            take some 7 times the room. Crops at random and all figures then differ slightly from `none`.
        on_bad_image: what becomes of an image that cannot be decoded: `error` ends the run and names it;
            `skip` leaves it out (in training the next image takes its place, so that batches stay full;
            in evaluation nothing does); `blank` puts a black image there. Each is named once, and they
            are counted in `train/bad_images` and so on. In predict it is always a row with an error.
        max_bad_fraction: share of the images beyond which the run ends after all, in 0..1.
        predict: what to predict: an image file, a folder that is searched with all its sub-folders, a
            pattern such as `photos/**/*.jpg`, or a table as in `train_files`; labels are not needed.
        predict_dataset: instead, a Hub id or local dataset.
        predict_split: split of it.
    """

    def __init__(
        self,
        dataset: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        train_dir: Places | None = None,
        validation_dir: Places | None = None,
        test_dir: Places | None = None,
        train_files: Places | None = None,
        validation_files: Places | None = None,
        test_files: Places | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        label_delimiter: str | None = None,
        streaming: bool = False,
        stream_buffer: int = 1000,
        train_rows: int | None = None,
        resize: Resize | None = None,
        tta: Literal["flip", "five_crop"] | None = None,
        augment: Augment = "light",
        transforms: list[dict[str, Any]] | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
        feature_views: int = 0,
        sampling: Literal["shuffle", "balanced"] = "shuffle",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        cache: CacheKind = "none",
        on_bad_image: OnBadImage = "error",
        max_bad_fraction: float = 0.05,
        predict: str | None = None,
        predict_dataset: str | None = None,
        predict_split: str = "test",
    ) -> None:
        super().__init__()
        # Checkpoints are read with weights_only=True: plain values only, no Path.
        dataset, predict = as_text(dataset), as_text(predict)
        train_dir, validation_dir, test_dir = map(as_text, (train_dir, validation_dir, test_dir))
        train_files, validation_files, test_files = map(as_text, (train_files, validation_files, test_files))
        self.save_hyperparameters()
        check_arguments(self.hparams)
        self._roles = Roles(SourceChoice(**self._said(SourceChoice)), RowChoice(**self._said(RowChoice)))
        self._bad_images = BadImages(on_bad_image, max_bad_fraction)
        self._mixer: BatchMixer | None = None
        self._image_spec: ImageSpec | None = None
        self.splits: dict[str, Split | StreamedSplit] = {}
        self._ready: dict[str, Split | StreamedSplit] = {}  # whose images are at hand below
        self._images: dict[str, Images] = {}
        self.predict_images: Inputs | None = None
        self.predicted: NDArray[np.int64] | None = None  # positions that a predict need not come to again
        self._train_loader: ResumableLoader | None = None
        self._interrupted: dict[str, int] | None = None

    def _said(self, choice: type[SourceChoice | RowChoice]) -> dict[str, Any]:
        return {field.name: self.hparams[field.name] for field in fields(choice)}

    @property
    def _attached(self) -> Trainer:
        assert self.trainer is not None, "a Trainer calls this"
        return self.trainer

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes in output order: the model's if it has some, else the training data's.

        None before `setup`, and after a `setup` for predict of a model without labels.
        """
        return self._roles.labels

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
            UserError: data that is missing, ambiguous or has classes unknown to the model, here or on another
                machine, or that is not the same everywhere.
        """
        with failing_together():
            self._set_up(stage)
        rows = {role: f"{len(split)} images, {split.fingerprint[:8]}" for role, split in self.splits.items()}
        check_same("The data", str(rows), "Give each machine the same files, or a disk that all of them see.")

    def _set_up(self, stage: str) -> None:
        self._open_stage(stage)
        for role, split in self.splits.items():
            if self._ready.get(role) is split:
                continue
            self._ready[role] = split
            log.info("%s: %s", role, split.described(self.labels or ()))
            if isinstance(split, Split):
                # One process builds a cache while the others wait, so it takes all cores.
                self._images[role] = split_images(split, self.hparams["cache"], self.image_spec, self._workers(1))
        if self.predict_images is not None:
            log.info("predict: %d images", len(self.predict_images))

    def _open_stage(self, stage: str | None) -> None:
        model = self._model
        self._image_spec = model.image_spec.resized(self.hparams["resize"])
        self._roles.labels = self._roles.labels or model.labels
        self._roles.form = LabelForm(model.task, self.hparams["label_delimiter"])
        if stage == "predict":
            said = (self.hparams[name] for name in ("predict", "predict_dataset", "predict_split", "image_column"))
            self.predict_images = images_to_predict(*said)
        if stage == "fit":
            self.splits["train"], self.splits["validation"] = self._roles.fit()
        if stage == "validate":
            self.splits["validation"] = self._roles.validation()
        if stage == "test":
            self.splits["test"] = self._roles.test()

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented."""
        seed = run_seed()
        processes, rank = self._attached.world_size, self._attached.global_rank
        self._mixer = mixer_of(self.hparams, len(self.labels or ()), (seed, rank))
        images, feature_epochs = self._images.get("train"), self._feature_epochs
        rows: Dataset
        rows, sampler = training_rows(
            self.splits["train"], images, self.image_spec, self.hparams, seed, processes, rank, feature_epochs
        )
        if feature_epochs > (self._interrupted or {}).get("epoch", 0):  # a resume after them needs none
            rows = self._featured(cast(ImageRows, rows), seed)
        loader = self._loader(rows, batch_size=self.hparams["batch_size"], sampler=sampler)
        self._train_loader = cast(ResumableLoader, loader)
        if self._interrupted is not None:
            self._train_loader.load_state_dict(self._interrupted)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: how far the training set was gone through.

        Lightning asks the loader itself too, but gives nothing back where the loader was made before the
        loops were restored, as it is for the number of steps that a schedule needs (2.6).
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after an interruption."""
        self._interrupted = state_dict.get("train_loader")

    def val_dataloader(self) -> DataLoader:
        """In order, each row once over all processes."""
        return self._eval_loader("validation")

    def test_dataloader(self) -> DataLoader:
        """In order, each row once over all processes."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The files of `predict`, in the order of their paths, without those that are predicted already."""
        assert self.predict_images is not None
        rows = ImageRows(self.predict_images, self._eval_transform)
        processes, rank = self._attached.world_size, self._attached.global_rank
        sampler = InOrder(len(rows), self.predicted, processes, rank)
        return self._loader(rows, batch_size=self._eval_batch_size, sampler=sampler)

    def example_pixels(self, count: int) -> Tensor:
        """The first readable validation images, as the network takes them: (B, 3, S, S) float32, B <= `count`."""
        rows = ImageRows(self._images["validation"], self.image_spec.eval_transform, self._targets("validation"))
        readable = (item for item in map(rows.__getitem__, range(len(rows))) if isinstance(item, Sample))
        batch = collate(list(islice(readable, count)))
        return self.image_spec.normalise(batch["pixel_values"])

    def evaluated(self, role: str, most: int) -> tuple[Iterator[Batch], int]:
        """The rows of a split as an evaluation takes them, for this process alone, and how many batches they are.

        In order, on the device, normalised; images that cannot be decoded are in `bad` alone.

        Args:
            role: `train` or `validation`, after a fit's `setup`; no stream.
            most: rows; of more, as many are chosen, evenly.
        """
        rows: Dataset = ImageRows(self._images[role], self._eval_transform, self._targets(role))
        if len(self.splits[role]) > most:
            rows = Subset(rows, np.linspace(0, len(self.splits[role]) - 1, most).astype(int).tolist())
        loader = self._loader(rows, batch_size=self._eval_batch_size)
        device = self._attached.strategy.root_device
        return (self._on_device(batch, device) for batch in loader), len(loader)

    def _on_device(self, batch: Batch, device: torch.device) -> Batch:
        if len(batch["ids"]):
            batch["pixel_values"] = self._normalised(batch["pixel_values"].to(device), evaluates=True)
        return batch

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Outside predict, see to the images that could not be decoded.

        Raises:
            UserError: there are too many; names them and the cause.
        """
        if not self._attached.predicting:
            role = "train" if self._attached.training else "test" if self._attached.testing else "validation"
            rows = len(self.splits[role]) / self._attached.world_size
            self._bad_images.take(batch["bad"], role, rows, self._attached.current_epoch)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device, normalise (uint8 -> float32), mirror, mix."""
        if batch["pixel_values"].dtype == torch.uint8 and len(batch["ids"]):  # else features
            batch["pixel_values"] = self._normalised(batch["pixel_values"], evaluates=not self._attached.training)
        if self._mixer is not None and self._attached.training:
            assert self._train_loader is not None
            return self._mixer(batch, self._attached.current_epoch, self._train_loader.taken)
        return batch

    def _normalised(self, pixels: Tensor, evaluates: bool) -> Tensor:
        normal = self.image_spec.normalise(pixels)
        mirrored = self.hparams["tta"] == "flip" and evaluates
        return torch.stack([normal, normal.flip(-1)], dim=1) if mirrored else normal

    # -- features in the place of images -----------------------------------------------------

    @property
    def _model(self) -> Classifier:
        return cast(Classifier, self._attached.lightning_module)

    @property
    def _feature_epochs(self) -> float:
        """How many first epochs of the training take features."""
        if not self.hparams["feature_views"]:
            return 0
        check_features(self.hparams, self._model.head_epochs, self._attached.world_size)
        return self._model.head_epochs

    def _featured(self, rows: ImageRows, seed: int) -> FeatureRows:
        views = self.hparams["feature_views"]
        draws = (draws_of_view(len(rows), view, seed) for view in range(views))
        return FeatureRows(rows, [self._extracted("train", rows, drawn) for drawn in draws])

    def _extracted(self, role: str, rows: ImageRows, drawn: Sequence[int | Draw]) -> Features:
        def features_of(batch: Batch) -> Tensor:
            pixels = batch["pixel_values"].to(self._attached.strategy.root_device)
            return self._model.features(self._normalised(pixels, evaluates=role != "train"))

        size = self._eval_batch_size
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        loader = self._loader(NumberedRows(rows), batch_sampler=batches, collate_fn=numbered_collate)
        found = extracted(loader, len(rows), features_of, f"features of {role}")
        self._bad_images.take(found.bad, role, len(rows), self._attached.current_epoch)
        return found

    @property
    def _eval_batch_size(self) -> int:
        return self.hparams["eval_batch_size"] or self.hparams["batch_size"]

    @property
    def _eval_transform(self) -> Transform:
        return self.image_spec.five_crops if self.hparams["tta"] == "five_crop" else self.image_spec.eval_transform

    def _eval_loader(self, role: str) -> DataLoader:
        instead = EVALUATION[self.hparams["on_bad_image"]]
        rows = ImageRows(self._images[role], self._eval_transform, self._targets(role), instead)
        if self._attached.world_size == 1:
            only_head = self._attached.state.fn == "fit" and self._feature_epochs == float("inf")
            featured = FeatureRows(rows, [self._extracted(role, rows, range(len(rows)))]) if only_head else rows
            return self._loader(featured, batch_size=self._eval_batch_size)
        shares = SharedEvenly(len(rows), self._eval_batch_size, self._attached.world_size, self._attached.global_rank)
        return self._loader(rows, batch_sampler=shares)

    def _targets(self, role: str) -> Targets:
        return cast(Split, self.splits[role]).targets

    def _loader(self, rows: Dataset, **kwargs: Any) -> TimedLoader:
        only_features = isinstance(rows, FeatureRows) and self._feature_epochs == float("inf")
        workers = 0 if only_features else self._workers(self._attached.num_devices)
        on_gpu = self._attached.strategy.root_device.type == "cuda"
        return image_loader(rows, workers, self._attached.global_rank, pin_memory=on_gpu, **kwargs)

    def _workers(self, processes: int) -> int:
        return worker_count(self.hparams["num_workers"], processes)
