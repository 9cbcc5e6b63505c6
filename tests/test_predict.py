import csv

import pytest
from PIL import Image

from tests.conftest import embed
from tests.killing import in_two_children


def rows_of(file) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def run(trained):
    return trained("--trainer.max_epochs=6", "--model.lr=3e-3")


@pytest.fixture
def photos(tmp_path, colours):
    """Seven files named like images: three of them are none; one is in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    red, green, blue = (sorted((colours / "test" / name).iterdir())[0] for name in ("red", "green", "blue"))
    (folder / "a red.JPG").write_bytes(red.read_bytes())
    (folder / "cut.jpg").write_bytes(green.read_bytes()[:500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    Image.open(green).convert("L").save(folder / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(blue).save(folder / "more" / "turned.jpg", exif=exif, quality=95)
    (folder / "more" / "z, comma.webp").write_bytes(b"")
    Image.open(blue).save(folder / "more" / "z, comma.webp")
    (folder / "notes.txt").write_text("ignored")
    return folder


def test_every_file_has_one_row_in_stable_order_and_bad_ones_say_why(vitcls, run, photos, tmp_path):
    words = ("predict", "--ckpt_path", run, "--data.predict", photos, "--output")
    status, out, err = vitcls(*words, tmp_path / "predictions.csv", "--data.batch_size=2")
    assert status == 0, err
    rows = rows_of(tmp_path / "predictions.csv")
    names = ["a red.JPG", "cut.jpg", "empty.png", "gray.png", "more/turned.jpg", "more/z, comma.webp", "text.jpg"]
    assert [row["file"] for row in rows] == [str(photos / name) for name in names]
    bad = {row["file"] for row in rows if row["error"]}
    assert bad == {str(photos / name) for name in ("cut.jpg", "empty.png", "text.jpg")}
    assert "7 rows" in out
    assert "3 of them could not be read" in out
    labels = {row["file"]: row["label"] for row in rows}
    assert labels[str(photos / "a red.JPG")] == "red"
    assert labels[str(photos / "more/turned.jpg")] == labels[str(photos / "more/z, comma.webp")] == "blue"
    assert all(row["label"] == "" for row in rows if row["error"])
    for row in rows:
        if not row["error"]:
            scores = [float(row["score"]), float(row["score_2"]), float(row["score_3"])]
            assert scores == sorted(scores, reverse=True)
            assert sum(scores) == pytest.approx(1, abs=1e-5)
            assert len({row["label"], row["label_2"], row["label_3"]}) == 3
    assert [file.name for file in tmp_path.glob(".predictions*")] == [".predictions.csv.inputs.json"]


def test_the_rows_do_not_depend_on_the_batch(vitcls, run, colours, tmp_path):
    for size in (1, 4, 100):
        vitcls(
            *("predict", "--ckpt_path", run, "--data.predict", colours / "test"),
            *("--output", tmp_path / f"{size}.csv", "--data.eval_batch_size", size, "--data.num_workers", size % 3),
        )
    one, four, hundred = ([(r["file"], r["label"]) for r in rows_of(tmp_path / f"{n}.csv")] for n in (1, 4, 100))
    assert len(one) == 21
    assert one == four == hundred


def test_two_processes_write_the_same_rows(vitcls, run, photos, tmp_path):
    words = ["predict", "--ckpt_path", run, "--data.predict", photos, "--data.batch_size=2", "--data.num_workers=0"]
    assert vitcls(*words, "--output", tmp_path / "one.csv")[0] == 0
    two = [*words, "--output", tmp_path / "two.csv", "--trainer.accelerator=cpu"]
    assert in_two_children(two, tmp_path / "log.txt") == 0, (tmp_path / "log.txt").read_text()
    one, two = rows_of(tmp_path / "one.csv"), rows_of(tmp_path / "two.csv")
    assert [(r["file"], r["label"], r["error"]) for r in one] == [(r["file"], r["label"], r["error"]) for r in two]


def test_one_file_is_predicted_by_name(vitcls, run, colours, tmp_path):
    file = sorted((colours / "test" / "green").iterdir())[2]
    vitcls("predict", "--ckpt_path", run, "--data.predict", file, "--output", tmp_path / "one.csv")
    (row,) = rows_of(tmp_path / "one.csv")
    assert (row["file"], row["label"]) == (str(file), "green")


def test_a_folder_of_bad_files_only_still_has_its_rows(vitcls, run, tmp_path):
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"")
    status, _, _ = vitcls(
        "predict", "--ckpt_path", run, "--data.predict", tmp_path / "bad", "--output", tmp_path / "b.csv"
    )
    assert status == 0
    assert [row["error"] for row in rows_of(tmp_path / "b.csv")] == ["the file is empty (0 bytes)"] * 3


def test_what_is_wrong_with_a_prediction_is_said(refuses, run, tmp_path, colours):
    (tmp_path / "nothing").mkdir()
    words = ("predict", "--ckpt_path", run)
    assert "Nothing to predict" in refuses(*words)
    assert "no file or folder" in refuses(*words, "--data.predict", tmp_path / "nowhere")
    assert "holds no image" in refuses(*words, "--data.predict", tmp_path / "nothing")
    assert "must end in .csv" in refuses(*words, "--data.predict", colours, "--output", "x.txt")
    assert "does not exist" in refuses(*words, "--data.predict", colours, "--output", tmp_path / "no" / "x.csv")
    assert "--output belongs to predict" in refuses("validate", "--ckpt_path", run, "--output", "x.csv")


def answers(vitcls, run, tmp_path, *words) -> list[dict[str, str]]:
    status, _, err = vitcls("predict", "--ckpt_path", run, "--output", tmp_path / "out.csv", *words)
    assert status == 0, err
    return rows_of(tmp_path / "out.csv")


def test_tables_patterns_and_datasets_give_the_answers_of_the_folder(vitcls, run, colours, tmp_path):
    files = sorted((colours / "test").rglob("*.jpg"))
    folder = answers(vitcls, run, tmp_path, "--data.predict", colours / "test")
    by_pattern = answers(vitcls, run, tmp_path, "--data.predict", colours / "test" / "**" / "*.jpg")
    (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, files)]))
    by_table = answers(vitcls, run, tmp_path, "--data.predict", tmp_path / "list.csv")
    assert folder == by_pattern == by_table
    assert [row["file"] for row in folder] == [str(file) for file in files]
    by_dataset = answers(vitcls, run, tmp_path, "--data.predict_dataset", colours)
    assert [row["label"] for row in by_dataset] == [row["label"] for row in folder]
    embed(colours / "test", tmp_path / "images.parquet", names=[])
    inside = answers(vitcls, run, tmp_path, "--data.predict", tmp_path / "images.parquet")
    assert len(answers(vitcls, run, tmp_path, "--data.predict", tmp_path / "*.parquet")) == len(inside)
    assert [row["score"] for row in inside] == [row["score"] for row in folder]
    assert inside[3]["file"] == f"row 3 of {tmp_path / 'images.parquet'}"


def test_a_missing_file_of_a_table_is_a_row_with_an_error(vitcls, run, colours, tmp_path):
    files = [*sorted((colours / "test" / "red").iterdir())[:2], tmp_path / "gone.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, files)]))
    rows = answers(vitcls, run, tmp_path, "--data.predict", tmp_path / "list.csv")
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    assert rows[2]["file"] == str(tmp_path / "gone.jpg")


def test_a_pattern_that_matches_nothing_is_a_sentence(refuses, run, tmp_path):
    assert "No file matches" in refuses("predict", "--ckpt_path", run, "--data.predict", tmp_path / "*.jpg")


def test_two_things_to_predict_are_refused(refuses, run, colours):
    words = ("predict", "--ckpt_path", run, "--data.predict", colours, "--data.predict_dataset", colours)
    assert "Two things to predict" in refuses(*words)
