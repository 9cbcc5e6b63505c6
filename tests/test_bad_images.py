import csv
import shutil

import pytest
import yaml

from vitcls import runs
from vitcls.data.bad_images import BadImages
from vitcls.errors import UserError
from vitcls.types import BadImage


@pytest.fixture
def broken(tmp_path, colours):
    """The colours with one truncated training, validation and test image each."""
    folder = tmp_path / "broken"
    shutil.copytree(colours, folder)
    shutil.copytree(colours / "test", folder / "validation")
    for split in ("train", "validation", "test"):
        file = folder / split / "green" / "003.jpg"
        file.write_bytes(file.read_bytes()[:400])
    return folder


@pytest.fixture
def words(fit_words, broken):
    return [*fit_words, f"--data.dataset={broken}"]


def last_figures(run) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: row[key] for row in rows for key in row if row[key]}


@pytest.mark.parametrize("policy", ["skip", "blank"])
def test_bad_images_are_named_once_and_counted(vitcls, words, tmp_path, policy):
    status, out, err = vitcls(*words, f"--data.on_bad_image={policy}")
    assert status == 0, err
    for split in ("train", "validation"):
        assert out.count(f"{split}/green/003.jpg") == 1, "the fit has two epochs"
    figures = last_figures(tmp_path / "runs" / "run")
    assert (float(figures["train/bad_images"]), float(figures["val/bad_images"])) == (1, 1)
    status, out, _ = vitcls("test", "--ckpt_path", tmp_path / "runs" / "run")
    assert status == 0
    assert "test/green/003.jpg" in out
    assert runs.read_metrics(tmp_path / "runs" / "run")["test"]["test/bad_images"] == 1


def test_an_interrupted_epoch_counts_those_of_its_last_batch(vitcls, words, broken, tmp_path, keeps_sigint):
    for file in (broken / "train").rglob("00[345].jpg"):
        file.write_bytes(b"no image")
    words = [*words, "--data.on_bad_image=skip", "--data.max_bad_fraction=0.9", "--trainer.max_epochs=1"]
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 2}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    assert vitcls(*words, "--run_name=whole")[0] == 0
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.callbacks=null")[0] == 0
    whole, parts = (float(last_figures(tmp_path / "runs" / name)["train/bad_images"]) for name in ("whole", "parts"))
    assert whole == parts >= 9


def test_what_is_left_out_of_an_evaluation_counts_for_nothing(vitcls, words, broken, tmp_path):
    assert vitcls(*words, "--data.on_bad_image=skip", "--data.max_bad_fraction=0.1")[0] == 0
    run = tmp_path / "runs" / "run"
    vitcls("test", "--ckpt_path", run, "--data.batch_size=1")  # one batch is empty
    left_out = runs.read_metrics(run)["test"]
    (broken / "test" / "green" / "003.jpg").unlink()
    vitcls("test", "--ckpt_path", run)
    removed = runs.read_metrics(run)["test"]
    assert left_out["test/loss"] == pytest.approx(removed["test/loss"], abs=1e-6)
    assert left_out["test/accuracy"] == removed["test/accuracy"]


def test_the_default_ends_the_run_and_says_how_to_go_on(refuses, words):
    told = refuses(*words)
    assert "green/003.jpg" in told
    assert "--data.on_bad_image skip" in told


def test_too_many_bad_images_end_the_run(refuses, words, broken):
    for file in sorted((broken / "train").rglob("*.jpg"))[::5]:
        file.write_bytes(b"")
    told = refuses(*words, "--data.on_bad_image=skip")
    assert "more than --data.max_bad_fraction 0.05 allows" in told
    assert "the file is empty" in told


def test_an_image_counts_once_however_often_it_is_met():
    tracker = BadImages("skip", 0.1)
    for _ in range(5):
        for role in ("train", "validation"):
            tracker.take([BadImage("a.jpg", 0, "cut")], role, rows=10)
    with pytest.raises(UserError, match=r"2 of 10 train images"):
        tracker.take([BadImage("b.jpg", 1, "cut")], "train", rows=10)


def test_repeated_draws_of_one_bad_image_do_not_end_the_run(vitcls, words):
    assert vitcls(*words, "--data.on_bad_image=skip", "--data.repeats=4")[0] == 0
