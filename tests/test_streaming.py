"""Training rows that are read while they are trained on."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import draw_split
from vitcls.data.label_form import LabelForm
from vitcls.data.loaders import image_loader
from vitcls.data.sources import DatasetSource
from vitcls.data.stream_classes import RowTarget
from vitcls.data.streamed import StreamedImages, StreamedSplit, StreamSampler
from vitcls.errors import UserError

ROWS = 48
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': even
          '1': odd
---
"""
CLASSES = ["even", "odd"]
KINDS = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch):
    """`datasets` waits 5 seconds at the end of each shuffled pass, until Arrow's threads have ended."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def write(file: Path, values: list[int], labels: list | None = None, kind=KINDS["label"], broken: int | None = None):
    """A parquet file with an image of each gray value; its class is whether the value is odd."""
    images = [{"bytes": b"no image" if value == broken else gray(value), "path": f"{value}.png"} for value in values]
    rows = {"image": images, "label": labels if labels is not None else [value % 2 for value in values]}
    file.parent.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features({**KINDS, "label": kind})).to_parquet(file)


def gray(value: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def sharded(tmp_path):
    """A folder of a dataset of ROWS images, in so many shards or in shards of these sizes."""

    def written(shards: int | list[int], rows: int = ROWS) -> Path:
        values = np.arange(rows)
        parts = np.array_split(values, shards) if isinstance(shards, int) else np.split(values, np.cumsum(shards)[:-1])
        for place, part in enumerate(parts):
            write(tmp_path / "data" / f"train-{place:05}-of-{len(parts):05}.parquet", part.tolist())
        write(tmp_path / "data" / "validation-00000-of-00001.parquet", list(range(100, 110)))
        write(tmp_path / "data" / "test-00000-of-00001.parquet", list(range(110, 120)))
        return tmp_path / "data"

    return written


def opened(folder: Path, rows: int | None = None) -> StreamedSplit:
    stream = DatasetSource(str(folder)).stream("train")
    target = RowTarget(stream.table.features["label"], LabelForm(), CLASSES, "train")
    return StreamedSplit("train", stream, rows or stream.rows or 0, "image", "label", target)


def loader(split: StreamedSplit, workers: int = 0, processes: int = 1, rank: int = 0, epoch: int = 0, seed: int = 7):
    sampler = StreamSampler(split, 10, seed, processes, rank)
    sampler.set_epoch(epoch)
    return image_loader(StreamedImages(_first_pixel, "bad"), workers, rank, batch_size=5, sampler=sampler)


def _first_pixel(image):
    return image[:1, :1, :1]


def batches(*args, **kwargs) -> list[list[int]]:
    return [batch["pixel_values"].flatten().tolist() for batch in loader(*args, **kwargs)]


def flat(lists: list[list[int]]) -> list[int]:
    return [value for values in lists for value in values]


@pytest.mark.parametrize("shards", [1, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_yield_each_row_exactly_once(sharded, shards, workers):
    split = opened(sharded(shards))
    own = [flat(batches(split, workers, processes=2, rank=rank)) for rank in (0, 1)]
    assert len(own[0]) == len(own[1]) == ROWS / 2
    assert sorted(own[0] + own[1]) == list(range(ROWS))


@pytest.mark.parametrize("shards", [1, [40, 7], [23, 24]])
def test_processes_take_equally_many_steps_where_the_rows_do_not_divide(sharded, shards):
    split = opened(sharded(shards, rows=47))
    own = [flat(batches(split, processes=2, rank=rank)) for rank in (0, 1)]
    assert len(own[0]) == len(own[1]) == 24
    assert set(own[0] + own[1]) == set(range(47))


def test_a_process_reads_shards_of_its_own_where_they_are_even(sharded):
    split = opened(sharded(8))
    assert sorted(flat(batches(split, processes=2, rank=1))) == list(range(ROWS // 2, ROWS))
    assert split.shards_of(3) is None  # 8 shards


def test_the_seed_and_the_epoch_make_the_order_and_the_workers_do_not(sharded):
    split = opened(sharded(3))
    first = batches(split)
    assert batches(split, workers=1) == batches(split, workers=2) == first
    assert batches(split, seed=8) != first
    assert batches(split, epoch=1) != first
    assert [len(batch) for batch in first] == [5] * 9 + [3]


def test_rows_come_from_several_shards_at_once(sharded):
    """A dataset that is sorted by class would else be learned class after class."""
    first = flat(batches(opened(sharded([24, 24]))))[:12]
    assert min(first) < 24 <= max(first)


def test_the_class_follows_the_image(sharded):
    for batch in loader(opened(sharded(3)), workers=2):
        assert batch["labels"].tolist() == [value % 2 for value in batch["pixel_values"].flatten().tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_where_it_was(sharded, workers):
    split = opened(sharded(3))
    whole = batches(split, epoch=4)
    before, after = loader(split, workers, epoch=4), loader(split, workers, epoch=4)
    batch = iter(before)
    taken = [next(batch)["pixel_values"].flatten().tolist() for _ in range(3)]
    after.load_state_dict(before.state_dict())
    rest = [batch["pixel_values"].flatten().tolist() for batch in after]
    assert taken + rest == whole
    after.load_state_dict(before.state_dict())
    after.sampler.set_epoch(5)  # as after an epoch that ended early
    assert [batch["pixel_values"].flatten().tolist() for batch in after] == batches(split, epoch=5)


@pytest.mark.parametrize(("said", "part"), [(40, "more, of which some are left out"), (60, "fewer, of which some")])
def test_a_wrong_number_of_rows_is_said(sharded, caplog, said, part):
    split = opened(sharded(1), rows=said)
    assert len(flat(batches(split))) == said
    assert part in caplog.text


def test_a_stream_without_rows_is_an_error(tmp_path, sharded):
    split = opened(sharded(1), rows=4)
    for file in tmp_path.rglob("train-*.parquet"):
        write(file, [])
    with pytest.raises(UserError, match="has no rows"):
        batches(split)


@pytest.fixture
def words(tiny_vit, tmp_path):
    """A fit of a stream."""
    options = {
        "model.checkpoint": tiny_vit,
        "data.streaming": "true",
        "data.batch_size": 8,
        "data.num_workers": 0,
        "data.stream_buffer": 16,
        "trainer.default_root_dir": tmp_path / "runs",
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items())]


def test_a_stream_is_trained_on_validated_and_tested(vitcls, words, sharded, tmp_path):
    status, out, _ = vitcls(*words, "--data.dataset", sharded(1))
    assert status == 0
    assert f"{ROWS} images of 2 classes, read as a stream from 1 files" in out
    run = tmp_path / "runs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())["validation"]
    assert metrics["step"] in (6, 12)  # 48 rows in batches of 8
    for verb in ("validate", "test"):
        assert vitcls(verb, "--ckpt_path", run)[0] == 0
    assert vitcls(*words, "--data.dataset", tmp_path / "data", "--ckpt_path", run, "--trainer.max_epochs=3")[0] == 0


def test_only_the_files_of_a_split_are_fetched(vitcls, words, sharded, tmp_path):
    folder = sharded(1)
    assert vitcls(*words, "--data.dataset", folder)[0] == 0
    file = folder / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(1000) + content[1004:])  # the footer, which tells the columns, is whole
    assert vitcls("test", "--ckpt_path", tmp_path / "runs" / "run")[0] == 0


def test_a_split_that_is_fetched_alone_has_the_columns_of_the_dataset(tmp_path):
    """Whose types may stand in the dataset's card only."""
    table = datasets.Dataset.from_dict({"image": [{"bytes": gray(1), "path": None}], "label": [1]})
    for split in ("train", "validation"):
        file = tmp_path / "data" / f"{split}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(table.data.table.replace_schema_metadata(None), file)
    (tmp_path / "data" / "README.md").write_text(CARD)
    alone = DatasetSource(str(tmp_path / "data"), split_alone=True)
    whole = DatasetSource(str(tmp_path / "data"))
    assert alone.load("validation").features == whole.load("validation").features == datasets.Features(KINDS)
    assert whole.stream("train").table.features == datasets.Features(KINDS)


def test_a_split_of_one_class_folder_keeps_its_class_when_fetched_alone(tmp_path):
    draw_split(tmp_path / "data" / "train", 2, seed=1)
    draw_split(tmp_path / "data" / "validation", 2, seed=2, classes=("red",))
    loaded = DatasetSource(str(tmp_path / "data"), split_alone=True).load("validation")
    assert loaded.features["label"].names == ["red"]


def test_a_stream_goes_on_from_where_its_files_are_now(vitcls, words, sharded, tmp_path):
    folder = sharded(2)
    files = [f"--data.{role}_files={folder}/{role}-*.parquet" for role in ("train", "validation")]
    assert vitcls(*words, *files, "--trainer.max_epochs=1")[0] == 0
    moved = folder.rename(tmp_path / "moved")
    files = [f"--data.{role}_files={moved}/{role}-*.parquet" for role in ("train", "validation")]
    status, out, _ = vitcls("fit", "--ckpt_path", tmp_path / "runs" / "run", *files, "--trainer.max_epochs=2")
    assert status == 0
    assert "read as a stream from 2 files" in out


def test_other_files_of_the_same_names_are_not_the_same_data(vitcls, refuses, words, sharded, tmp_path):
    folder = sharded(1)
    assert vitcls(*words, "--data.dataset", folder)[0] == 0
    write(folder / "train-00000-of-00001.parquet", [*range(1, ROWS), 200])
    said = refuses("fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.max_epochs=3")
    assert "is not that of the run" in said


def test_another_revision_of_the_hub_is_not_the_same_data(sharded):
    split = opened(sharded(1))
    files = [f"hf://datasets/owner/name@{revision}/train.parquet" for revision in ("one", "two")]
    streams = [replace(split.stream, files=[file]) for file in files]
    assert len({replace(split, stream=stream).fingerprint for stream in streams}) == 2


def test_a_run_with_said_rows_is_tested_on_other_data(vitcls, words, colours, sharded, tmp_path):
    words += ["--data.dataset", str(sharded(1)), f"--data.train_rows={ROWS}", "--trainer.max_epochs=1"]
    assert vitcls(*words)[0] == 0
    other = tmp_path / "other"
    write(other / "test.parquet", [4, 5, 6])
    write(other / "train.parquet", [4, 5, 6])
    assert vitcls("test", "--ckpt_path", tmp_path / "runs" / "run", "--data.dataset", other)[0] == 0


def test_bad_images_without_names_count_one_by_one(refuses, words, tmp_path):
    """An error page that a crawler kept again and again has the same bytes each time."""
    images = [{"bytes": b"<html>" if value % 3 == 0 else gray(value), "path": None} for value in range(ROWS)]
    rows = {"image": images, "label": [value % 2 for value in range(ROWS)]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(KINDS)).to_parquet(tmp_path / "data" / "train.parquet")
    write(tmp_path / "data" / "validation.parquet", [4, 5, 6])
    words += ["--data.dataset", str(tmp_path / "data"), "--data.on_bad_image=skip"]
    status_and_words = refuses(*words)
    assert "of 48 train images cannot be decoded, more than --data.max_bad_fraction 0.05" in status_and_words


def test_parquet_files_are_streamed_together(vitcls, words, sharded):
    folder = sharded(2)
    files = [f"--data.{role}_files={folder}/{role}-*.parquet" for role in ("train", "validation")]
    status, out, _ = vitcls(*words, *files, "--trainer.max_epochs=1")
    assert status == 0
    assert "read as a stream from 2 files" in out


def test_several_classes_of_an_image_are_streamed(vitcls, words, tmp_path):
    kind = datasets.List(datasets.ClassLabel(names=CLASSES))
    for role in ("train", "validation"):
        write(tmp_path / "data" / f"{role}.parquet", [0, 1, 2, 3] * 6, [[0], [1], [], [0, 1]] * 6, kind)
    multilabel = ["--model.task=multilabel", "--trainer.max_epochs=1"]
    assert vitcls(*words, "--data.dataset", tmp_path / "data", *multilabel)[0] == 0


def test_bad_images_of_a_stream_are_named_or_left_out(vitcls, refuses, words, sharded, tmp_path):
    folder = sharded(1)
    write(folder / "train-00000-of-00001.parquet", list(range(ROWS)), broken=17)
    words += ["--data.dataset", str(folder), "--trainer.max_epochs=1"]
    assert "17.png: the content is not an image" in refuses(*words)
    status, out, _ = vitcls(*words, "--data.on_bad_image=skip")
    assert status == 0
    assert out.count("17.png") == 1
    rows = (tmp_path / "runs" / "run" / "metrics.csv").read_text()
    assert "train/bad_images" in rows


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("data.train_split=train[:10]", "reads whole splits, but --data.train_split is 'train[:10]'"),
        ("data.validation_split=train", "would be trained on and validated on"),
        ("data.train_limit=10", "--data.train_limit 10 needs to know all training rows beforehand"),
        ("data.repeats=2", "--data.repeats 2 needs"),
        ("data.sampling=balanced", "--data.sampling balanced needs"),
        ("data.cache=raw", "--data.cache raw needs"),
        ("data.stream_buffer=0", "must be at least 1"),
    ],
)
def test_what_cannot_be_with_a_stream_is_refused(refuses, words, sharded, option, part):
    assert part in refuses(*words, "--data.dataset", sharded(1), f"--{option}")


def test_sources_that_cannot_be_streamed_are_refused(refuses, words, sharded, colours, tmp_path):
    assert "leave --data.streaming out" in refuses(*words, "--data.dataset=digits", "--data.validation_split=test")
    folders = [f"--data.{role}_dir={colours / split}" for role, split in (("train", "train"), ("validation", "test"))]
    assert "image folders are read file by file anyway" in refuses(*words, *folders)
    table = tmp_path / "list.csv"
    table.write_text("image,label\n")
    assert "'" + str(table) + "' is none" in refuses(
        *words, f"--data.train_files={table}", f"--data.validation_files={table}"
    )
    check = [word for word in words[1:] if not word.startswith("--trainer.max")]
    assert "check reads all images" in refuses("check", *check, "--data.dataset", sharded(1))


def test_a_stream_needs_a_validation_set_known_classes_and_the_number_of_its_rows(refuses, words, sharded, tmp_path):
    folder = sharded(1)
    (folder / "validation-00000-of-00001.parquet").unlink()
    assert "cannot keep a share of the training rows" in refuses(*words, "--data.dataset", folder)
    for role in ("train", "validation"):
        write(tmp_path / "named" / f"{role}.parquet", [0, 1], ["even", "odd"], datasets.Value("string"))
    assert "does not declare them (string)" in refuses(*words, "--data.dataset", tmp_path / "named")
    for role in ("train", "test"):
        draw_split(tmp_path / "fresh" / role, 2, seed=1)  # a dataset that was read before has its rows counted
    unknown = refuses(*words, "--data.dataset", tmp_path / "fresh", "--data.validation_split=test")
    assert "say it with --data.train_rows" in unknown


def test_image_folders_of_a_dataset_are_streamed_where_the_rows_are_said(vitcls, words, colours):
    words += ["--data.dataset", str(colours), "--data.validation_split=test", "--data.train_rows=60"]
    assert vitcls(*words, "--trainer.max_epochs=1")[0] == 0


@pytest.mark.parametrize(
    ("value", "part"), [(-1, "has no class"), (-2, "has no class"), (None, "has no class"), (2, "'other'")]
)
def test_a_row_without_a_known_class_is_named(value, part):
    kind = datasets.ClassLabel(names=[*CLASSES, "other"])
    with pytest.raises(UserError, match=part) as caught:
        RowTarget(kind, LabelForm(), CLASSES, "train")(value)
    assert caught.value.of_one_process  # the one that drew the row has to tell


def test_classes_are_matched_by_name():
    assert RowTarget(KINDS["label"], LabelForm(), ["odd", "even"], "train")(0) == 1
    assert RowTarget(datasets.Value("string"), LabelForm(), CLASSES, "train")("odd") == 1
    several = RowTarget(datasets.Value("string"), LabelForm("multilabel", "|"), CLASSES, "train")
    assert several("odd").tolist() == [False, True]
    assert several("").tolist() == [False, False]
