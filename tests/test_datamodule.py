import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from tests.conftest import embed
from vitcls import ImageDataModule, ViTClassifier

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def opened(tiny_vit):
    """A data module after `setup`, joined with the tiny ViT."""

    def open_data(stage="fit", **arguments):
        data = ImageDataModule(**{"num_workers": 0, "batch_size": 8, **arguments})
        model = ViTClassifier(str(tiny_vit))
        trainer = Trainer(accelerator="cpu", **QUIET)
        trainer.strategy.connect(model)
        trainer.state.fn = stage
        data.trainer = model.trainer = trainer
        data.setup(stage)
        return data

    return open_data


def test_a_batch_has_the_promised_shapes_and_types(opened, colours):
    data = opened(dataset=str(colours))
    batch = next(iter(data.train_dataloader()))
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((8, 3, 32, 32), torch.uint8)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((8,), torch.int64)
    assert (batch["ids"].shape, batch["ids"].dtype) == ((8,), torch.int64)
    normalised = data.on_after_batch_transfer(batch, 0)["pixel_values"]
    assert normalised.dtype == torch.float32
    assert normalised.min() >= -1
    assert normalised.max() <= 1


def test_labels_follow_the_images(opened, colours):
    data = opened(dataset=str(colours), crop_scale=(1.0, 1.0))
    channels = [{"blue": 2, "green": 1, "red": 0}[label] for label in data.labels]
    for batch in data.train_dataloader():
        brightest = batch["pixel_values"].float().mean((2, 3)).argmax(1)
        assert [channels[label] for label in batch["labels"].tolist()] == brightest.tolist()


def test_ids_are_rows_of_the_split(opened, colours):
    data = opened(dataset=str(colours))
    table = datasets.load_dataset(str(colours), split="train")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            for row, label in zip(batch["ids"].tolist(), batch["labels"].tolist(), strict=True):
                assert table[row]["label"] == label


def test_folders_parquet_and_digits_are_the_same_kind_of_data(opened, colours, tmp_path):
    folders = opened(train_dir=str(colours / "train"), validation_dir=str(colours / "test"))
    assert (len(folders.splits["train"]), len(folders.splits["validation"])) == (60, 21)
    embed(colours / "train", tmp_path / "p" / "train.parquet", [], image="photo", label="kind")
    parquet = opened(dataset=str(tmp_path / "p"))
    assert parquet.labels == folders.labels == ["blue", "green", "red"]
    digits = opened(dataset="digits")
    assert digits.labels == [str(d) for d in range(10)]
    assert len(digits.splits["train"]) + len(digits.splits["validation"]) == 1437
    assert len(opened("test", dataset="digits").splits["test"]) == 360


def test_digits_train_and_test_share_no_row_and_cover_all():
    from vitcls.data import digits

    train, test = digits.load("train"), digits.load("test")
    assert len(train) + len(test) == 1797
    assert np.bincount(test["label"][:]).tolist() == pytest.approx([36] * 10, abs=1)


def test_split_expressions_work(opened, colours):
    data = opened(dataset=str(colours), train_split="train[:50%]", validation_split="train[50%:]")
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (30, 30)
    data = opened(dataset="digits", train_split="train[:100]", validation_split="train[100:150]")
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (100, 50)


def test_a_validation_split_is_used_unless_it_is_the_test_split(opened, colours, tmp_path):
    folder = tmp_path / "three"
    for split in ("train", "validation"):
        shutil.copytree(colours / ("train" if split == "train" else "test"), folder / split)
    assert len(opened(dataset=str(folder)).splits["validation"]) == 21
    carved = opened(dataset=str(folder), test_split="validation")
    assert (len(carved.splits["train"]), len(carved.splits["validation"])) == (54, 6)


def test_limits_are_stratified_and_seeded(opened, colours):
    rows = [
        opened(dataset=str(colours), train_limit=12, eval_limit=3, split_seed=seed).splits["train"]
        for seed in (0, 0, 1)
    ]
    assert [np.bincount(split.targets).tolist() for split in rows] == [[4, 4, 4]] * 3
    assert rows[0].rows.tolist() == rows[1].rows.tolist() != rows[2].rows.tolist()


def test_the_seed_of_the_run_does_not_move_the_validation_rows(opened, colours):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(opened(dataset=str(colours)).splits["validation"].rows.tolist())
    assert found[0] == found[1]


def test_classes_are_matched_by_name_where_the_order_differs(opened, colours, tmp_path):
    """Red, blue and green are 0, 1, 2 in the validation file and 2, 0, 1 in the training folder."""
    names = ["red", "blue", "green"]
    folder = tmp_path / "p"
    embed(colours / "test", folder / "test.parquet", names)
    data = opened("test", dataset=str(folder))
    assert data.labels is None
    data = ImageDataModule(dataset=str(folder), num_workers=0)
    model = ViTClassifier(architecture={"model_type": "vit", "image_size": 8, "patch_size": 8}, labels=sorted(names))
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    trainer.state.fn = "test"
    data.trainer = model.trainer = trainer
    data.setup("test")
    channels = [{"blue": 2, "green": 1, "red": 0}[label] for label in data.labels]
    for batch in data.test_dataloader():
        brightest = batch["pixel_values"].float().mean((2, 3)).argmax(1)
        assert [channels[label] for label in batch["labels"].tolist()] == brightest.tolist()


def test_workers_give_the_same_evaluation_batches(opened, colours):
    def batches(workers):
        loader = opened(dataset=str(colours), num_workers=workers).val_dataloader()
        return [(b["ids"].tolist(), b["pixel_values"].sum().item()) for b in loader]

    assert batches(0) == batches(2)


def test_what_workers_take_can_be_pickled(opened, colours):
    """Python 3.14 starts workers afresh instead of forking.

    What starts them holds shared memory, which only a process that is being started can be given:
    test_dead_workers.py starts some.
    """
    loader = opened(dataset=str(colours)).train_dataloader()
    for part in (loader.dataset, loader.collate_fn):
        pickle.dumps(part)


def test_a_broken_image_among_the_rows_is_named_with_its_row(opened, colours, tmp_path):
    folder = tmp_path / "broken" / "train"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (20, 20), (number * 20, 0, 0)).save(folder / name / f"{number}.png")
    (folder / "a" / "7.png").write_bytes(b"")
    data = opened(dataset=str(folder.parent), validation_fraction=0.5)
    bad = [image for loader in (data.train_dataloader(), data.val_dataloader()) for b in loader for image in b["bad"]]
    assert [(Path(image.name.split(" ")[0]).name, image.id) for image in bad] == [("7.png", 7)]


def test_hyper_parameters_are_plain(opened, colours):
    json.dumps(dict(opened(dataset=str(colours)).hparams))
