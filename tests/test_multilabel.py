"""Images with any number of classes, from the table to the predictions."""

import csv
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from transformers import pipeline

from tests.conftest import CLASSES, draw_scenes, list_scenes, multilabel_options
from tests.test_predict import rows_of
from vitcls import ViTClassifier
from vitcls.__main__ import main
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.preprocess import spec_of_size


@pytest.fixture(scope="module")
def run(tiny_vit, scenes, tmp_path_factory):
    """A run folder of a training that ended; read only."""
    root = tmp_path_factory.mktemp("multilabel")
    assert main(multilabel_options(tiny_vit, scenes, root)) == 0
    return root / "run"


@pytest.fixture
def words(tiny_vit, scenes, tmp_path):
    return multilabel_options(tiny_vit, scenes, tmp_path / "runs", epochs=1)


@pytest.fixture(scope="module")
def predicted(run, scenes, tmp_path_factory):
    """What the run says of the test scenes: the rows of the CSV file."""
    output = tmp_path_factory.mktemp("predictions") / "out.csv"
    assert (
        main(["predict", "--ckpt_path", str(run), f"--data.predict={scenes / 'test.csv'}", f"--output={output}"]) == 0
    )
    return rows_of(output)


def section(run, name: str) -> dict:
    return json.loads((run / "metrics.json").read_text())[name]


def truth(file) -> np.ndarray:
    """(N, 3) which colours the rows of a CSV say."""
    with file.open(newline="") as lines:
        return np.array([[colour in row["labels"].split("|") for colour in CLASSES] for row in csv.DictReader(lines)])


def probabilities(rows: list[dict[str, str]]) -> np.ndarray:
    """(N, 3) scores of the rows of a prediction, in the order of CLASSES."""
    columns = [("label", "score"), ("label_2", "score_2"), ("label_3", "score_3")]
    return np.array([[{r[a]: float(r[b]) for a, b in columns}[c] for c in CLASSES] for r in rows])


def test_a_training_learns_which_colours_occur_and_keeps_its_figures(run):
    figures = section(run, "validation")
    assert figures["val/map"] > 0.9
    assert set(figures["val/f1_of_labels"]) == set(CLASSES)
    assert np.mean(list(figures["val/f1_of_labels"].values())) == pytest.approx(figures["val/f1"], abs=1e-6)
    assert figures["val/accuracy"] > 0.8


def test_the_best_epoch_is_the_one_with_the_best_average_precision(run):
    with (run / "metrics.csv").open(newline="") as lines:
        precisions = [float(row["val/map"]) for row in csv.DictReader(lines) if row["val/map"]]
    assert section(run, "validation")["val/map"] == max(precisions)
    callbacks = torch.load(run / "best.ckpt", weights_only=True)["callbacks"]
    assert [name for name in callbacks if "'val/map'" in name]


def test_validate_alone_gives_the_figures_of_fit(vitcls, run):
    status, out, err = vitcls("validate", "--ckpt_path", run)
    assert status == 0, err
    for name in ("val/map", "val/f1", "val/accuracy", "val/loss"):
        assert f"{section(run, 'validation')[name]}" in out


def test_the_test_figures_are_scikit_learns_of_the_predictions(vitcls, run, scenes, predicted, tmp_path):
    """Every image is said to have the colours of the next one, or the figures would all be 1."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(scenes / "test", tmp_path / "test")
    rows = list(csv.DictReader((scenes / "test.csv").read_text().splitlines()))
    wrong = [(row["path"], other["labels"].split("|")) for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    file = list_scenes(tmp_path / "wrong.csv", wrong)
    assert vitcls("test", "--ckpt_path", tmp_path / "run", "--data.test_files", file)[0] == 0
    figures, targets, scores = section(tmp_path / "run", "test"), truth(file), probabilities(predicted)
    rounding = 1e-5  # the file holds six digits
    assert figures["test/map"] == pytest.approx(average_precision_score(targets, scores, average="macro"), abs=rounding)
    assert figures["test/f1"] == pytest.approx(f1_score(targets, scores >= 0.5, average="macro"), abs=rounding)
    assert figures["test/accuracy"] == pytest.approx((targets == (scores >= 0.5)).mean(), abs=rounding)
    of_labels = dict(zip(CLASSES, f1_score(targets, scores >= 0.5, average=None), strict=True))
    assert figures["test/f1_of_labels"] == pytest.approx(of_labels, abs=rounding)
    assert 0.2 < figures["test/map"] < 0.8


def test_unseen_images_are_recognised(vitcls, run, scenes, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert vitcls("test", "--ckpt_path", tmp_path / "run")[0] == 0
    assert section(tmp_path / "run", "test")["test/map"] > 0.9


def test_predict_names_the_labels_that_reach_the_thresholds_of_the_run(run, predicted):
    thresholds = json.loads((run / "thresholds.json").read_text())
    assert list(thresholds) == list(CLASSES)
    assert any(value != 0.5 for value in thresholds.values())
    reached = probabilities(predicted) >= [thresholds[name] for name in CLASSES]
    assert [row["labels"] for row in predicted] == ["|".join(np.array(CLASSES)[row]) for row in reached]
    assert any(row["labels"] == "" for row in predicted)
    assert list(predicted[0]) == [
        *("id", "file", "labels", "label", "score", "label_2", "score_2", "label_3", "score_3", "error")
    ]


def test_the_thresholds_are_the_best_for_the_validation_images(vitcls, run, scenes, tmp_path):
    rows = json.loads((run / "splits.json").read_text())["validation"]["rows"]
    answers = predict(vitcls, run, scenes / "train.csv", tmp_path)
    targets, scores = truth(scenes / "train.csv")[rows], probabilities(answers)[rows]
    thresholds = json.loads((run / "thresholds.json").read_text())
    for k, name in enumerate(CLASSES):
        best = max(f1_score(targets[:, k], scores[:, k] >= cut) for cut in scores[:, k])
        assert f1_score(targets[:, k], scores[:, k] >= thresholds[name]) == pytest.approx(best)


def predict(vitcls, run, images, tmp_path, *words) -> list[dict[str, str]]:
    output = tmp_path / "out.csv"
    status, _, err = vitcls("predict", "--ckpt_path", run, "--data.predict", images, "--output", output, *words)
    assert status == 0, err
    return rows_of(output)


def test_other_thresholds_can_be_said(vitcls, run, scenes, predicted, tmp_path):
    answers = predict(vitcls, run, scenes / "test.csv", tmp_path, "--model.thresholds", "{red: 0, blue: 1}")
    assert all("red" in row["labels"].split("|") and "blue" not in row["labels"] for row in answers)
    assert ["green" in row["labels"] for row in answers] == ["green" in row["labels"] for row in predicted]


def test_a_checkpoint_away_from_its_run_keeps_its_thresholds(vitcls, run, scenes, predicted, tmp_path):
    shutil.copy(run / "best.ckpt", tmp_path / "moved.ckpt")
    answers = predict(vitcls, tmp_path / "moved.ckpt", scenes / "test.csv", tmp_path)
    assert [row["labels"] for row in answers] == [row["labels"] for row in predicted]


def test_a_bad_image_has_its_row_and_its_error_last(vitcls, run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "empty.jpg").write_bytes(b"")
    (row,) = predict(vitcls, run, tmp_path / "bad", tmp_path)
    assert row["error"] == "the file is empty (0 bytes)"
    assert row["labels"] == row["score_3"] == ""


def test_plain_transformers_gives_the_same_independent_probabilities(run, scenes, predicted):
    classify = pipeline("image-classification", str(run / "model"))
    assert classify.model.config.problem_type == "multi_label_classification"
    for row in predicted[:5]:
        found = {answer["label"]: answer["score"] for answer in classify(row["file"])}
        ours = probabilities([row])[0]
        assert [found[name] for name in CLASSES] == pytest.approx(ours, abs=1e-5)


def test_a_network_for_one_class_is_not_said_to_have_several(run, tmp_path):
    model = ViTClassifier(str(run / "model"), labels=list(CLASSES))
    model.configure_model()
    assert model.network.config.problem_type is None


def module_of(file, delimiter: str | None = None, task: str = "multilabel", **data) -> ImageDataModule:
    """A datamodule whose splits of a fit are open."""
    from types import SimpleNamespace

    module = ImageDataModule(train_files=str(file), label_delimiter=delimiter, num_workers=0, **data)
    model = SimpleNamespace(labels=None, image_spec=spec_of_size(32), task=task)
    module.trainer = SimpleNamespace(lightning_module=model, world_size=1)
    module.setup("fit")
    return module


def all_targets(module: ImageDataModule) -> np.ndarray:
    """(N, K) of the rows of both splits, in the order of the table."""
    parts = [module.splits["train"], module.splits["validation"]]
    rows = np.concatenate([part.rows for part in parts])
    return np.concatenate([part.targets for part in parts])[np.argsort(rows)]


@pytest.mark.parametrize("kind", ["lists of classes", "lists of strings", "one string"])
def test_lists_and_strings_say_the_same(tmp_path, kind):
    scenes = draw_scenes(tmp_path / "train", 30, seed=4)
    expected = [[name in colours for name in CLASSES] for _, colours in scenes]
    assert [False] * 3 in expected
    if kind == "one string":
        file, delimiter = list_scenes(tmp_path / "train.csv", scenes, delimiter=" ; "), ";"
    else:
        name = datasets.ClassLabel(names=list(CLASSES)) if kind == "lists of classes" else datasets.Value("string")
        features = datasets.Features(image=datasets.Image(), tags=datasets.List(name))
        images = [{"bytes": (tmp_path / path).read_bytes(), "path": None} for path, _ in scenes]
        table = {"image": images, "tags": [colours for _, colours in scenes]}
        file, delimiter = tmp_path / "train.parquet", None
        datasets.Dataset.from_dict(table, features=features).to_parquet(file)
    module = module_of(file, delimiter)
    assert module.labels == list(CLASSES)
    assert all_targets(module).tolist() == expected


def test_several_tables_are_joined_by_name(tmp_path):
    scenes = [draw_scenes(tmp_path / name, 20, seed) for name, seed in (("one", 1), ("two", 2))]
    renamed = [(path, ["cyan" if c == "blue" else c for c in colours]) for path, colours in scenes[1]]
    list_scenes(tmp_path / "a.csv", scenes[0])
    list_scenes(tmp_path / "b.csv", renamed)
    module = module_of(tmp_path / "[ab].csv", "|")
    assert module.labels == ["blue", "cyan", "green", "red"]
    expected = [[name in colours for name in module.labels] for _, colours in [*scenes[0], *renamed]]
    assert all_targets(module).tolist() == expected


def test_classes_of_a_test_table_are_matched_by_name(vitcls, refuses, run, tmp_path):
    scenes = [(path, [c for c in colours if c != "blue"]) for path, colours in draw_scenes(tmp_path / "new", 12, 5)]
    file = list_scenes(tmp_path / "test.csv", scenes)
    shutil.copytree(run, tmp_path / "run")
    assert vitcls("test", "--ckpt_path", tmp_path / "run", "--data.test_files", file)[0] == 0
    assert section(tmp_path / "run", "test")["test/f1_of_labels"]["blue"] == 0
    list_scenes(file, [*scenes, ("new/000.jpg", ["red", "violet"])])
    told = refuses("test", "--ckpt_path", run, "--data.test_files", file)
    assert "classes that the model does not know (1): violet" in told


def test_the_same_table_is_the_same_data_and_another_label_is_not(tmp_path):
    scenes = draw_scenes(tmp_path / "train", 20, seed=1)
    file = list_scenes(tmp_path / "train.csv", scenes)
    before = module_of(file, "|").splits["train"].fingerprint
    assert module_of(file, "|").splits["train"].fingerprint == before
    list_scenes(file, [(scenes[0][0], ["red", "green", "blue"] if len(scenes[0][1]) < 3 else []), *scenes[1:]])
    assert module_of(file, "|").splits["train"].fingerprint != before


def test_the_validation_share_has_each_label_in_proportion(run, scenes):
    targets = truth(scenes / "train.csv")
    rows = json.loads((run / "splits.json").read_text())["validation"]["rows"]
    assert len(rows) == 48
    assert np.abs(targets[rows].sum(axis=0) - 0.2 * targets.sum(axis=0)).max() <= 1


def test_one_class_data_is_refused_with_the_column_and_what_to_say(refuses, fit_words, words, scenes):
    multilabel = [word for word in words if "delimiter" not in word]
    told = refuses(*multilabel)
    assert "'labels' holds one string for an image: say what separates the classes in it with --data.label_del" in told
    told = refuses(*fit_words, "--model.task=multilabel")
    assert "'label' holds one class for an image: to learn it, say --model.task multiclass." in told
    told = refuses(*words, "--model.task=multiclass")
    assert "--data.label_delimiter '|' separates several classes" in told
    assert "say --model.task multilabel, or leave the delimiter out" in told
    assert "--data.label_delimiter is ''; it must be at least one character" in refuses(
        *words, "--data.label_delimiter="
    )


def test_balanced_draws_are_refused(refuses, words):
    told = refuses(*words, "--data.sampling=balanced")
    assert "--data.sampling balanced draws by the one class of an image" in told
    assert "say --data.sampling shuffle" in told


def test_thresholds_are_checked(refuses, words, run, fit_words):
    assert "--model.thresholds.red is 1.5; it must be between 0 and 1." in refuses(
        *words, "--model.thresholds={red: 1.5}"
    )
    told = refuses("validate", "--ckpt_path", run, "--model.thresholds={rde: 0.5}")
    assert "--model.thresholds names 'rde', which is none of the model's classes (did you mean 'red'?)" in told
    assert "belong to --model.task multilabel" in refuses(*fit_words, "--model.thresholds={red: 0.5}")


def test_a_monitor_of_the_other_task_is_refused_before_the_training(refuses, words, fit_words, tmp_path):
    stop = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/%s, mode: max}}]}"
    for figure, own in (("macro_accuracy", words), ("map", fit_words)):
        (tmp_path / "stop.yaml").write_text(stop % figure)
        assert f"watches 'val/{figure}', which is not measured" in refuses(*own, "--config", tmp_path / "stop.yaml")


def test_mixed_images_views_and_smoothing_train_several_labels(vitcls, words, tmp_path):
    extra = ["--data.mixup=0.4", "--data.cutmix=1", "--data.tta=flip", "--model.label_smoothing=0.1"]
    status, _, err = vitcls(*words, *extra)
    assert status == 0, err
    assert 0 < section(tmp_path / "runs" / "run", "validation")["val/map"] <= 1


def test_an_adapter_keeps_several_labels(vitcls, words, tmp_path):
    assert vitcls(*words, "--model.adapter.r=4")[0] == 0
    config = json.loads((tmp_path / "runs" / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_a_resume_goes_on_with_the_task(vitcls, words, tmp_path):
    assert vitcls(*words)[0] == 0
    run = tmp_path / "runs" / "run"
    status, _, err = vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=2")
    assert status == 0, err
    content = torch.load(run / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["task"] == "multilabel"
    assert content["hyper_parameters"]["thresholds"] is None
    assert content["epoch"] == 1


def test_the_task_of_a_trained_checkpoint_is_not_changed(refuses, run):
    assert "was trained as 'multilabel'" in refuses("validate", "--ckpt_path", run, "--model.task=multiclass")
