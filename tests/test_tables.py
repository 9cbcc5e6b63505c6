import csv
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import embed
from vitcls.data.choice import SourceChoice
from vitcls.data.columns import image_column, label_column, labelled
from vitcls.data.tables import TableSource


@pytest.fixture
def photos(tmp_path, colours):
    """A copy of the test images, with names that a table refers to."""
    shutil.copytree(colours / "test", tmp_path / "photos")
    return tmp_path / "photos"


def listed(photos: Path) -> list[tuple[str, str]]:
    return [(str(f.relative_to(photos.parent)), f.parent.name) for f in sorted(photos.rglob("*.jpg"))]


def write(file: Path, rows: list[tuple[str, str]], names=("path", "label")) -> str:
    if file.suffix in (".csv", ".tsv"):
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([names, *rows])
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    return str(file)


def opened(source) -> tuple[list[str], list[bytes]]:
    """(class, image file) of each row."""
    table = source.load("train")
    image, label = image_column(table.features), label_column(table.features)
    found = labelled(table, label, where="train")
    cells = table.cast_column(image, datasets.Image(decode=False))[image]
    files = [cell["bytes"] or Path(cell["path"]).read_bytes() for cell in cells]
    return [found.names[i] for i in found.targets], files


def expected(photos: Path) -> tuple[list[str], list[bytes]]:
    rows = listed(photos)
    return [label for _, label in rows], [(photos.parent / path).read_bytes() for path, _ in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_of_paths_is_read_relative_to_itself(photos, tmp_path, suffix):
    file = write(tmp_path / f"list{suffix}", listed(photos))
    assert opened(TableSource(file)) == expected(photos)


def test_a_table_may_be_anywhere_if_its_paths_are_absolute(photos, tmp_path):
    (tmp_path / "else").mkdir()
    rows = [(str(tmp_path / path), label) for path, label in listed(photos)]
    assert opened(TableSource(write(tmp_path / "else" / "list.csv", rows))) == expected(photos)


@pytest.mark.parametrize("kind", ["features", "struct", "binary"])
def test_parquet_with_the_images_inside_is_read_whoever_wrote_it(photos, tmp_path, kind):
    labels, files = expected(photos)
    file = tmp_path / "images.parquet"
    if kind == "features":
        embed(photos, file, names=[])
    else:
        images = pa.array([{"bytes": b, "path": None} for b in files] if kind == "struct" else files)
        pq.write_table(pa.table({"photo": images, "label": pa.array(labels)}), file)
    assert opened(TableSource(str(file))) == (labels, files)


def test_arrow_files_are_read(photos, tmp_path):
    embed(photos, tmp_path / "one.parquet", names=["blue", "green", "red"])
    table = datasets.Dataset.from_parquet(str(tmp_path / "one.parquet"), cache_dir=tmp_path)
    table.save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    assert opened(TableSource(str(file))) == expected(photos)


def test_every_word_of_a_csv_is_a_name(photos, tmp_path):
    paths = [path for path, _ in listed(photos)][:6]
    labels = ["007", "NA", "null", "7", "nan", "1e3"]
    file = write(tmp_path / "list.csv", list(zip(paths, labels, strict=True)))
    assert opened(TableSource(file))[0] == labels


def test_an_empty_cell_is_no_class(refuses, fit_words, photos, tmp_path):
    rows = [(path, label if number else "") for number, (path, label) in enumerate(listed(photos))]
    file = write(tmp_path / "list.csv", rows)
    assert "have no class" in refuses(*fit_words, "--data.dataset=null", f"--data.train_files={file}")


def test_a_file_of_several_that_also_validates_is_refused(refuses, fit_words, photos, tmp_path):
    one = write(tmp_path / "one.csv", listed(photos)[::2])
    write(tmp_path / "two.csv", listed(photos)[1::2])
    words = ("--data.dataset=null", f"--data.train_files={tmp_path}/*.csv", f"--data.validation_files={one}")
    assert "trained on and validated on" in refuses(*fit_words, *words)


def test_a_misspelt_column_of_several_sources_is_refused(refuses, fit_words, photos, tmp_path):
    write(tmp_path / "one.csv", listed(photos)[::2])
    write(tmp_path / "two.csv", listed(photos)[1::2])
    words = (*fit_words, "--data.dataset=null", f"--data.train_files={tmp_path}/*.csv", "--data.label_column=lable")
    assert "none of the 2 sources has" in refuses(*words)


def test_new_test_data_replaces_that_of_the_run_in_whatever_form(vitcls, fit_words, photos, tmp_path, colours):
    assert vitcls(*fit_words, f"--data.test_dir={colours / 'test'}")[0] == 0
    file = write(tmp_path / "new.csv", listed(photos)[:9])
    _, out, _ = vitcls("test", "--ckpt_path", tmp_path / "runs" / "run", f"--data.test_files={file}")
    assert "test: 9 images" in out


def test_several_tables_and_folders_are_joined_by_the_names_of_their_classes(photos, tmp_path, colours):
    rows = listed(photos)
    write(tmp_path / "part-1.csv", rows[:10])
    write(tmp_path / "part-2.csv", [(path, label) for path, label in rows[10:] if label != "red"])
    shutil.copytree(colours / "test" / "red", tmp_path / "folder" / "red")
    shutil.copytree(colours / "test" / "red", tmp_path / "folder" / "purple")
    choice = SourceChoice(train_dir=str(tmp_path / "folder"), train_files=[str(tmp_path / "part-*.csv")])
    source, split = choice.train()
    labels, files = opened(source)
    assert split == "train"
    assert labels.count("red") == 7 + sum(label == "red" for _, label in rows[:10])
    assert labels.count("purple") == 7
    assert len(files) == len(labels) == 14 + sum(label != "red" or i < 10 for i, (_, label) in enumerate(rows))


def test_a_table_trains_and_tests(vitcls, fit_words, photos, tmp_path, colours):
    train = [(str(f), f.parent.name) for f in sorted((colours / "train").rglob("*.jpg"))]
    words = [f"--data.train_files={write(tmp_path / 'train.csv', train)}", "--data.dataset=null"]
    status, out, err = vitcls(*fit_words, *words, "--trainer.max_epochs=6", "--model.lr=3e-3")
    assert status == 0, err
    assert "train: 54 images, 3 of 3 classes" in out
    test = write(tmp_path / "test.jsonl", listed(photos))
    status, out, err = vitcls("test", "--ckpt_path", tmp_path / "runs" / "run", f"--data.test_files={test}")
    assert status == 0, err
    assert "test: 21 images" in out


def test_a_missing_file_of_a_table_is_a_bad_image_with_a_name(refuses, fit_words, photos, tmp_path):
    rows = [*listed(photos), ("photos/red/gone.jpg", "red")]
    file = write(tmp_path / "list.csv", rows)
    told = refuses(*fit_words, "--data.dataset=null", f"--data.train_files={file}")
    assert "gone.jpg" in told
    assert "No such file" in told


@pytest.mark.parametrize(
    ("name", "rows", "names", "part"),
    [
        ("list.csv", [("elsewhere/a.jpg", "red")], ("path", "label"), "paths are relative to the table's own folder"),
        ("list.csv", [("a.jpg", "red")], ("picture", "label"), "has no column of images, of their bytes"),
        ("list.txt", [], (), "must end in .parquet"),
        ("list.jsonl", None, (), "could not be read"),
        ("list.parquet", None, (), "could not be read"),
        ("none.csv", [], None, "There is no file"),
    ],
)
def test_a_table_that_cannot_be_is_a_sentence(refuses, fit_words, tmp_path, name, rows, names, part):
    if rows is None:
        (tmp_path / name).write_text("{no table")
    elif names is not None:
        (tmp_path / name).write_text("")
        write(tmp_path / name, rows, names)
    assert part in refuses(*fit_words, "--data.dataset=null", f"--data.train_files={tmp_path / name}")
