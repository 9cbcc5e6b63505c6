"""What is measured and how it is told; never how fast it is."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_split, embed
from vitcls.bench.loading import Difference, Timing, _difference, _timing, readable_photos
from vitcls.data.cache import caches
from vitcls.data.choice import SourceChoice
from vitcls.data.inputs import unlabelled

FEW = ["--images=6", "--rounds=2", "--size=32"]
WAYS = ["example", "ours", "ours, jpeg cache", "ours, raw cache"]


def test_every_way_is_told_and_written(vitcls, colours, tmp_path):
    before = set(caches().glob("*"))
    status, out, err = vitcls("bench", "data", "--data.dataset", colours, *FEW, "--output", tmp_path / "b.json")
    assert status == 0, err
    assert all(f"│ {way} " in out for way in WAYS)
    assert "6 images, on average" in out
    report = json.loads((tmp_path / "b.json").read_text())
    assert [timing["name"] for timing in report["timings"]] == WAYS
    assert report["timings"][0]["ratio"] == 1
    assert all(timing["best"] >= timing["median"] > 0 for timing in report["timings"])
    assert report["images"]["count"] == 6
    assert {"processor", "cores", "torch", "pillow", "simplejpeg"} <= report["machine"].keys()
    assert set(caches().glob("*")) == before  # the user's own caches are let alone


def test_our_pixels_are_pillows(vitcls, colours, tmp_path):
    vitcls("bench", "data", "--data.train_dir", colours / "train", *FEW, "--output", tmp_path / "b.json")
    found = json.loads((tmp_path / "b.json").read_text())["differences"]
    assert found["decoded"] == {"largest": 0, "share": 0}
    assert found["decoded, cropped, resized"]["largest"] <= 1


def test_tables_need_no_labels_of_ours(vitcls, colours, tmp_path):
    embed(colours / "train", tmp_path / "p" / "t.parquet", [], image="photo", label="kind")
    assert vitcls("bench", "data", "--data.train_files", tmp_path / "p" / "t.parquet", *FEW)[0] == 0


def test_images_that_cannot_be_decoded_are_left_out(tmp_path):
    draw_split(tmp_path / "photos", 3, seed=0, classes=("blue", "red"))
    bad = tmp_path / "photos" / "red" / "001.jpg"
    bad.write_bytes(b"no image")
    source, name = SourceChoice(train_dir=str(tmp_path / "photos")).train()
    photos = readable_photos(unlabelled(source.load(name), name), most=6)
    assert len(photos.split) == len(photos.split.targets) == 5
    sizes = [file.stat().st_size for file in (tmp_path / "photos").rglob("*.jpg") if file != bad]
    assert photos.size == pytest.approx(np.mean(sizes))


def test_a_ratio_compares_within_a_round():
    """The machine was half as fast in the second round, for both."""
    assert _timing("ours", [30.0, 15.0, 30.0], [10.0, 5.0, 30.0]) == Timing("ours", 30, 30, 3)


def test_a_difference_counts_values_both_ways():
    dark, bright = np.zeros((2, 2), np.uint8), np.array([[0, 255], [0, 3]], np.uint8)
    assert _difference(iter([(dark, bright), (bright, dark)])) == Difference(255, 0.5)


def test_all_images_bad_is_a_sentence(refuses, tmp_path):
    (tmp_path / "photos" / "red").mkdir(parents=True)
    (tmp_path / "photos" / "red" / "1.jpg").write_bytes(b"no image")
    assert "None of the images" in refuses("bench", "data", "--data.train_dir", tmp_path / "photos")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["dta"], "did you mean 'data'?"),
        (["data"], "No training data: give --data.dataset"),
        (["data", "--image=3"], "did you mean --images?"),
        (["data", "--data.batch_size=3"], "There is no option --data.batch_size"),
        (["data", "--images=0"], "--images is 0; it must be at least 1."),
        (["data", "--rounds=many"], "--rounds is 'many'; it must be a whole number."),
        (["data", "--output=nowhere/b.json"], "is in a folder that does not exist"),
    ],
)
def test_mistakes_are_sentences(refuses, words, part):
    assert part in refuses("bench", *words)


@pytest.mark.parametrize("words", [[], ["--help"], ["data", "--help"]])
def test_help_names_what_can_be_measured(vitcls, words):
    status, out, _ = vitcls("bench", *words)
    assert status == 0
    assert "bench" in out
    assert "data" in out
    assert Path(out.split()[2]).name == "-m"
