"""Files, linked in folders of their labels."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import CLASSES, embed
from tests.test_predict import rows_of
from vitcls.predictions.rows import Row
from vitcls.predictions.sorting import folder_names, sort_into


def row(number: int, file: Path, *labels: str, present: bool = False, error: str = "") -> Row:
    best = [(label, 0.5) for label in labels]
    return Row(number, str(file), *labels[:1] or [""], best, list(labels) if present else None, None, None, error)


@pytest.fixture
def files(tmp_path):
    """Three files, of which two have one name."""
    found = [tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.jpg", tmp_path / "two" / "b.jpg"]
    for file in found:
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(file))
    return found


def linked(folder: Path) -> dict[str, str]:
    """What is read through each link."""
    return {str(link.relative_to(folder)): link.read_text() for link in sorted(folder.rglob("*")) if link.is_file()}


def test_files_of_one_name_have_links_of_two(files, tmp_path):
    rows = [row(number, file, "cat") for number, file in enumerate(files)]
    for _ in range(2):  # the second time nothing is left to do
        sort_into(tmp_path / "sorted", rows, ["cat", "dog"])
        a, other, b = map(str, files)
        assert linked(tmp_path / "sorted") == {"cat/a.jpg": a, "cat/a-1.jpg": other, "cat/b.jpg": b}
    assert (tmp_path / "sorted" / "cat" / "a.jpg").is_symlink()
    assert not (tmp_path / "sorted" / "dog").exists()


def test_each_label_that_is_present_has_a_link(files, tmp_path):
    rows = [row(0, files[0], "cat", "dog", present=True), row(1, files[1], present=True), row(2, files[2], error="x")]
    sort_into(tmp_path / "sorted", rows, ["cat", "dog"])
    assert linked(tmp_path / "sorted") == {"cat/a.jpg": str(files[0]), "dog/a.jpg": str(files[0])}


def test_where_no_symbolic_links_can_be_made_they_are_hard(files, tmp_path, monkeypatch):
    def refused(*_) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    for _ in range(2):
        sort_into(tmp_path / "sorted", [row(0, files[0], "cat")], ["cat"])
    assert linked(tmp_path / "sorted") == {"cat/a.jpg": str(files[0])}


def test_no_label_leads_out_of_the_folder():
    labels = ["a/b", "a_b", "A_B", "..", ".", "", "/etc", "c:", "plain name", "dot."]
    names = folder_names(labels)
    assert list(names) == labels
    assert names["plain name"] == "plain name"
    assert len({name.casefold() for name in names.values()}) == len(labels)
    for name in names.values():
        assert Path(name).name == name
        assert not name.startswith(".")


@pytest.fixture
def words(trained_run, colours, tmp_path):
    shutil.copytree(colours / "test", tmp_path / "photos")  # files of one name in three folders
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"")
    words = ["--data.predict", tmp_path / "photos", "--data.num_workers=0"]
    return ["predict", "--ckpt_path", trained_run, *words, "--output", tmp_path / "o.csv"]


def test_the_links_are_those_of_the_rows(vitcls, refuses, words, tmp_path):
    words = [*words, "--sort_into", tmp_path / "sorted", "--abstain=0.5"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    links = [link for link in (tmp_path / "sorted").rglob("*") if link.is_symlink()]
    labels = {row["file"]: row["label"] for row in rows_of(tmp_path / "o.csv") if not row["error"]}
    assert {str(link.resolve()): link.parent.name for link in links} == labels
    assert set(labels.values()) <= {*CLASSES, "unknown"}
    assert len(links) == 21
    assert "21 links in" in out
    assert "1 of the files have no label" in out
    assert "holds something already" in refuses(*words)


def test_an_interrupted_sorting_goes_on(vitcls, words, tmp_path, monkeypatch, keeps_sigint):
    words = [*words, "--sort_into", tmp_path / "sorted"]
    made = []

    def interrupted(link, file):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(link)
        link.hardlink_to(file)

    monkeypatch.setattr(Path, "symlink_to", interrupted)
    assert vitcls(*words)[0] == 130
    monkeypatch.undo()
    assert vitcls(*words, "--resume=true")[0] == 0
    assert len(linked_files(tmp_path / "sorted")) == 21
    assert [file.name for file in tmp_path.glob(".o.csv*")] == [".o.csv.inputs.json"]


def linked_files(folder: Path) -> list[Path]:
    return [link for link in folder.rglob("*") if link.is_file()]


def test_an_output_that_was_finished_without_links_is_not_taken_for_sorted(vitcls, refuses, words, tmp_path):
    assert vitcls(*words)[0] == 0
    words = [*words, "--sort_into", tmp_path / "sorted"]
    assert "it is of other --sort_into." in refuses(*words, "--resume=true")
    assert vitcls(*words)[0] == 0
    assert "is finished" in vitcls(*words, "--resume=true")[1]


def test_links_of_another_predict_are_told(vitcls, words, tmp_path):
    (tmp_path / "sorted" / "red").mkdir(parents=True)
    (tmp_path / "sorted" / "red" / "other.jpg").write_bytes(b"")
    out = vitcls(*words, "--sort_into", tmp_path / "sorted", "--resume=true")[1]
    assert "also holds 1 files that are of no row of these predictions" in out


def test_a_folder_that_would_be_predicted_next_time_is_refused(refuses, words, tmp_path):
    photos = words[words.index("--data.predict") + 1]
    assert "lies in --data.predict" in refuses(*words, "--sort_into", photos / "sorted")
    output = words[words.index("--output") + 1]
    assert "are both" in refuses(*words, "--sort_into", output)


def test_only_files_can_be_sorted(vitcls, refuses, words, colours, tmp_path):
    embed(colours / "test", tmp_path / "images.parquet", names=[])
    into = ["--sort_into", tmp_path / "sorted"]
    told = refuses(*words, *into, "--data.predict", tmp_path / "images.parquet")
    assert "--sort_into links files" in told
    files = sorted((colours / "test").rglob("*.jpg"))[:3]
    (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, files)]))
    assert vitcls(*words, *into, "--data.predict", tmp_path / "list.csv")[0] == 0
    assert len(linked_files(tmp_path / "sorted")) == 3
    (tmp_path / "file").write_text(json.dumps(1))
    assert "is a file; give a folder" in refuses(*words, "--sort_into", tmp_path / "file")
