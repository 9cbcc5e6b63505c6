"""What is measured and how it is told; never how fast it is."""

import json
import mmap
import multiprocessing
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tests.conftest import draw_split, embed
from vitcls.__main__ import main
from vitcls.bench import predicting, serving, training
from vitcls.bench.checking import Checking, time_checking
from vitcls.bench.clients import Photo
from vitcls.bench.loading import Difference, Timing, _difference, _timing, readable_photos
from vitcls.bench.memory import memory_of
from vitcls.bench.source import SOURCES
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


def test_sources_are_those_of_the_training_data():
    names = "dataset config_name revision train_dir train_files train_split image_column"
    assert names.split() == list(SOURCES)


@pytest.fixture
def own_cache():
    """The folder of the caches of `datasets`, which a measurement leaves as it was."""
    before = datasets.config.HF_DATASETS_CACHE
    files = set(before.rglob("*"))
    yield
    assert before == datasets.config.HF_DATASETS_CACHE
    assert set(before.rglob("*")) == files


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone tells")
def test_the_memory_of_rows_is_told_and_written(vitcls, tmp_path, own_cache):
    status, out, err = vitcls("bench", "memory", "--rows=100000", "--output", tmp_path / "b.json")
    assert status == 0, err
    assert "100,000 rows take" in out
    assert "train: 90000 images, 100 of 100 classes" in out  # through the data module of fit
    report = json.loads((tmp_path / "b.json").read_text())
    assert [len(report["many"]["workers"][number]) for number in ("2", "4")] == [2, 4]
    for process in (report["many"]["read"], *report["many"]["workers"]["4"]):
        assert process["rss"] >= process["pss"] >= process["uss"] >= process["own"] > 0
    assert multiprocessing.active_children() == []
    # 200 bytes a row, as 200 MB of a million, and what the allocator may keep at hand.
    assert report["of_the_rows"]["main"] < 20 + 20
    assert max(report["of_the_rows"]["workers"].values()) < 20


def test_own_memory_is_what_a_process_was_given_for_itself():
    """Fresh pages count; pages that a fork shares do not."""
    before = memory_of("self")
    # From the system itself: an allocator may give pages that the process had before.
    held = mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(held, np.uint8)[:] = 1
    after = memory_of("self")
    assert after.own - before.own == pytest.approx(50, abs=5)
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=_wait_after, args=(started,))
    child.start()
    assert started.wait(60)
    shared = memory_of(child.pid)
    child.kill()
    child.join()
    assert shared.rss > 50 > shared.own


def _wait_after(started) -> None:
    started.set()
    signal.pause()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cost_of_checking_is_told_and_written(vitcls, colours, tmp_path, workers):
    words = ["--data.train_dir", colours / "train", "--images=9", "--rounds=2", f"--workers={workers}"]
    status, out, err = vitcls("bench", "check", *words, "--output", tmp_path / "b.json")
    assert status == 0, err
    assert f"9 images, {workers} workers, median of 2 rounds" in out
    assert "│ decoding alone │" in out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["images"]["count"] == 9
    assert report["workers"] == workers
    assert min(report["decoding"], report["checking"], report["ratio"]) > 0


def test_both_ways_read_every_image_in_turn(colours, monkeypatch):
    """The ratio is that of a round."""
    turns = []
    clock = iter([1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 20.0])
    monkeypatch.setattr("vitcls.bench.checking._decode_all", lambda images, _: turns.append(("decode", len(images))))
    monkeypatch.setattr("vitcls.bench.checking.read_facts", lambda images, *_: turns.append(("check", len(images))))
    monkeypatch.setattr("vitcls.bench.checking.time.perf_counter", lambda: next(clock))
    found = time_checking([0, 0, 0], 0, rounds=2)
    assert turns == [("decode", 3), *[("decode", 3), ("check", 3)] * 2]  # the first fills the page cache
    assert found == Checking(decoding=2.5, checking=7.0, ratio=2.5)


NETWORKS = {
    "small": [],
    "lora": ["--model.adapter.r=2", "--precision=bf16-mixed"],
    "multilabel": ["--model.task=multilabel"],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_speed_of_training_is_told_and_written(vitcls, tiny_vit, tmp_path, network):
    words = ["--batches=2", "--batch_size=3", "--rounds=3", *NETWORKS[network], "--output", tmp_path / "b.json"]
    if network == "lora":
        words += ["--model.checkpoint", tiny_vit]
    status, out, err = vitcls("bench", "train", *words)
    assert status == 0, err
    assert "│ bare loop │" in out
    report = json.loads((tmp_path / "b.json").read_text())
    assert {"lightning", "transformers", "torch", "processor"} <= report["machine"].keys()
    assert report["trainable"] == {"small": 306_730, "lora": 842, "multilabel": 306_730}[network]
    assert len(report["fit"]) == len(report["bare"]) == 3
    ratios = sorted(fit / bare for fit, bare in zip(report["fit"], report["bare"], strict=True))
    assert report["ratio"] == ratios[1]


def test_the_bare_loop_takes_the_steps_of_fit(monkeypatch):
    """Without warm-up, decay and schedule both end at the same weights: as much is done in both."""
    ends = []
    loop = training.bare_loop

    def keeping(model, trainer):
        epoch = loop(model, trainer)
        cells = dict(zip(epoch.__code__.co_freevars, (c.cell_contents for c in epoch.__closure__), strict=True))
        ends.append((model.network, cells["network"]))
        return epoch

    monkeypatch.setattr(training, "bare_loop", keeping)
    plain = ["--model.warmup_fraction=0", "--model.schedule=constant", "--model.weight_decay=0", "--model.lr=0.01"]
    assert main(["bench", "train", "--batches=2", "--batch_size=3", "--rounds=1", *plain]) == 0
    ((fitted, bare),) = ends
    for one, other in zip(fitted.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "--precision=16"], "--precision is '16'; it must be 32-true or bf16-mixed."),
        (["train", "--batches=0"], "--batches is 0; it must be at least 1."),
        (["train", "--model.checkpiont=x"], "did you mean --model.checkpoint?"),
        (["dta"], "did you mean 'data'?"),
        (["memry"], "did you mean 'memory'?"),
        (["memory", "--rows=10"], "--rows is 10; it must be at least 1000."),
        (["memory", "--data.train_dir=x"], "There is no option --data.train_dir"),
        (["check"], "No training data: give --data.dataset"),
        (["check", "--rounds=0"], "--rounds is 0; it must be at least 1."),
        (["check", "--workers=-1"], "--workers is -1; it must be at least 0."),
        (["check", "--data.test_dir=x"], "There is no option --data.test_dir"),
        (["data"], "No training data: give --data.dataset"),
        (["data", "--image=3"], "did you mean --images?"),
        (["data", "--data.batch_size=3"], "There is no option --data.batch_size"),
        (["data", "--images=0"], "--images is 0; it must be at least 1."),
        (["data", "--rounds=many"], "--rounds is 'many'; it must be a whole number."),
        (["predict", "--batch_size=0"], "--batch_size is 0; it must be at least 1."),
        (["predict", "--precision=16"], "--precision is '16'; it must be 32-true or bf16-mixed."),
        (["serve", "nowhere"], "'nowhere' does not exist"),
        (["serve", "run", "--clients=0"], "--clients is 0; it must be at least 1."),
        (["serve", "run", "--precision=16"], "--precision is '16'; it must be 32-true or bf16-mixed."),
        (["predict", "--predict=nowhere"], "There is no file or folder 'nowhere'"),
        (["data", "--output=nowhere/b.json"], "is in a folder that does not exist"),
    ],
)
def test_mistakes_are_sentences(refuses, words, part):
    assert part in refuses("bench", *words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["data", "--help"],
        ["memory", "--help"],
        ["check", "--help"],
        ["train", "--help"],
        ["predict", "--help"],
        ["serve", "--help"],
    ],
)
def test_help_names_what_can_be_measured(vitcls, words):
    status, out, _ = vitcls("bench", *words)
    assert status == 0
    assert "bench" in out
    assert (words[0] if len(words) == 2 else "memory") in out
    assert Path(out.split()[2]).name == "-m"


def test_a_head_on_features_is_measured_against_one_on_images(vitcls, colours, tiny_vit, tmp_path):
    words = ["bench", "probe", "--data.dataset", colours, "--data.num_workers=0", "--model.checkpoint", tiny_vit]
    status, out, err = vitcls(*words, "--epochs=1", "--rounds=2", "--views=[1, 2]", "--output", tmp_path / "b.json")
    assert status == 0, err
    assert "features of 2 views" in out
    ways = json.loads((tmp_path / "b.json").read_text())["ways"]
    assert [way["views"] for way in ways] == [0, 1, 2]
    assert ways[0]["share"] == 1
    assert all(len(way["seconds"]) == len(way["figure"]) == 2 for way in ways)


@pytest.mark.parametrize("photos", ["drawn", "named"])
def test_the_speed_of_predict_is_told_and_written(vitcls, colours, trained_run, tmp_path, photos):
    words = ["--images=6", "--batch_size=4", "--rounds=3", "--num_workers=0", "--checkpoint", trained_run / "model"]
    words += ["--predict", colours / "test"] if photos == "named" else ["--precision=bf16-mixed"]
    status, out, err = vitcls("bench", "predict", *words, "--output", tmp_path / "b.json")
    assert status == 0, err
    assert out.count("6 rows in") == 5  # one to make the network, one to warm up
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["images"] == 6
    ways = {way["way"]: way for way in report["ways"]}
    assert list(ways) == ["predict", "transformers.pipeline", "forward pass"]
    for way in ways.values():
        ratios = [ours / its for ours, its in zip(ways["predict"]["speeds"], way["speeds"], strict=True)]
        assert way["times"] == sorted(ratios)[1]


def test_the_network_that_is_drawn_can_be_predicted_with(vitcls, monkeypatch):
    monkeypatch.setattr(predicting, "TINY", {**predicting.TINY, "num_hidden_layers": 1})
    assert vitcls("bench", "predict", "--images=2", "--rounds=1", "--num_workers=0")[0] == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_speed_of_serve_is_told_and_every_answer_compared(vitcls, colours, trained_run, tmp_path, precision):
    words = ["--predict", colours / "test", "--images=6", "--clients=3", "--seconds=0.5", "--num_workers=0"]
    words += [f"--precision={precision}", "--output", tmp_path / "b.json"]
    status, out, err = vitcls("bench", "serve", trained_run, *words)
    assert status == 0, err
    assert "serve is times as fast" in out
    report = json.loads((tmp_path / "b.json").read_text())
    (found,) = report["rounds"]
    assert (found["wrong"], found["broken"], list(found["statuses"])) == (0, 0, ["200"])
    assert found["ratio"] == found["serve"] / found["predict"]
    assert found["p50"] <= found["p99"]


def test_a_wrong_answer_is_counted(tmp_path):
    (tmp_path / "p.csv").write_text("file,label,score,label_2,score_2,error\nx/a.jpg,cat,0.7,dog,0.3,\n")
    is_right = serving.expected_of(tmp_path / "p.csv", 0.01)

    def answer(*best):
        return {"images": [{"best": [{"label": label, "score": score} for label, score in best]}]}

    photo = Photo("a.jpg", b"")
    assert is_right(photo, answer(("cat", 0.705), ("dog", 0.295)))
    assert not is_right(photo, answer(("cat", 0.72), ("dog", 0.28)))
    assert not is_right(photo, answer(("dog", 0.7), ("cat", 0.3)))
    assert not is_right(photo, answer(("cow", 0.7), ("hen", 0.3)))


def test_a_server_that_does_not_start_says_why(refuses, trained_run, colours):
    words = ["--predict", colours / "test", "--images=2", "--num_workers=0", "--options=[--port=70000]"]
    assert "--port is 70000; it must be in 0..65535" in refuses("bench", "serve", trained_run, *words)


def test_no_views_are_refused(refuses):
    assert "views is [0]; it must be at least 1" in refuses("bench", "probe", "--views=[0]")
