"""A user's mistake is one readable sentence that says what was found, what is valid and what to do."""

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_split
from vitcls.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Writes a parquet dataset with the given further columns; gives its folder."""

    def write(**columns):
        folder = tmp_path / "table"
        folder.mkdir()
        images = [Image.fromarray(np.full((8, 8, 3), 20 * n, np.uint8)) for n in range(6)]
        features = {name: column[0] for name, column in columns.items()}
        values = {name: column[1] for name, column in columns.items()}
        made = datasets.Dataset.from_dict(
            {"image": images, **values}, features=datasets.Features(image=datasets.Image(), **features)
        )
        made.to_parquet(folder / "train-0.parquet")
        return folder

    return write


def test_a_hub_that_cannot_be_reached(refuses, fit_words):
    told = refuses(*fit_words, "--data.dataset=owner/pictures")
    assert "'owner/pictures'" in told
    assert "--data.train_dir" in told
    assert "hf download --repo-type dataset owner/pictures" in told


def test_a_checkpoint_that_cannot_be_reached(refuses, fit_words):
    told = refuses(*fit_words, "--model.checkpoint=owner/network")
    assert "'owner/network'" in told
    assert "hf download owner/network" in told


def test_a_checkpoint_folder_that_does_not_exist(refuses, fit_words):
    assert "'./nowhere' does not exist" in refuses(*fit_words, "--model.checkpoint=./nowhere")


def test_a_dataset_folder_that_does_not_exist(refuses, fit_words):
    assert "'./nowhere' does not exist" in refuses(*fit_words, "--data.dataset=./nowhere")


def test_an_unknown_split(refuses, fit_words):
    told = refuses(*fit_words, "--data.train_split=trian")
    assert "no split 'trian'" in told
    assert "train, test" in told or "test, train" in told
    assert "did you mean 'train'" in told


@pytest.mark.parametrize("expression", ["train[:10", "train[a:b]", "train[:200%]"])
@pytest.mark.parametrize("dataset", ["folder", "digits"])
def test_a_split_expression_that_makes_no_sense(refuses, fit_words, dataset, expression):
    words = [] if dataset == "folder" else ["--data.dataset=digits"]
    assert "split expression" in refuses(*fit_words, *words, f"--data.train_split={expression}")


def test_an_ambiguous_label_column_lists_columns_and_types(refuses, fit_words, table):
    names = datasets.ClassLabel(names=["a", "b"])
    folder = table(colour=(names, [0, 1] * 3), shape=(names, [1, 0] * 3))
    told = refuses(*fit_words, f"--data.dataset={folder}")
    for word in ("image (Image)", "colour (ClassLabel)", "shape (ClassLabel)", "--data.label_column"):
        assert word in told


def test_a_label_column_of_the_wrong_type(refuses, fit_words, table):
    folder = table(price=(datasets.Value("float32"), [0.5] * 6), kind=(datasets.Value("string"), ["a", "b"] * 3))
    told = refuses(*fit_words, f"--data.dataset={folder}", "--data.label_column=price")
    assert "'price'" in told
    assert "float32" in told


def test_an_adapter_target_that_matches_nothing_lists_what_would(refuses, fit_words):
    told = refuses(*fit_words, "--model.adapter.r=4", '--model.adapter.targets=["querry"]')
    assert "'querry'" in told
    assert "q_proj" in told
    assert "did you mean 'query'" in told


def test_a_misspelt_option_names_the_nearest(refuses, fit_words):
    assert "did you mean --model.checkpoint" in refuses("fit", "--model.chekpoint", "x")
    assert "did you mean --trainer.max_epochs" in refuses(*fit_words, "--trainer.max_epoch=3")


def test_a_misspelt_key_in_a_config_names_the_nearest(refuses, tmp_path):
    (tmp_path / "a.yaml").write_text("modle:\n  lr: 1\n")
    assert "did you mean --model.lr" in refuses("fit", "--config", tmp_path / "a.yaml")


def test_a_config_that_is_not_there_or_is_no_yaml(refuses, tmp_path):
    assert "nowhere.yaml" in refuses("fit", "--config", tmp_path / "nowhere.yaml")
    (tmp_path / "a.yaml").write_text("model:\n  lr: [1\n")
    assert "line 2" in refuses("fit", "--config", tmp_path / "a.yaml")


def test_a_misspelt_verb(refuses):
    assert "did you mean 'validate'" in refuses("valdate")


def test_labels_that_contradict_the_checkpoints(vitcls, refuses, fit_words, tmp_path):
    vitcls(*fit_words, "--trainer.max_epochs=1")
    draw_split(tmp_path / "fruits", 3, seed=5, classes=("red", "banana"))
    for verb, option in (("validate", "validation_dir"), ("test", "test_dir")):
        told = refuses(verb, "--ckpt_path", tmp_path / "runs" / "run", f"--data.{option}={tmp_path / 'fruits'}")
        assert "banana" in told
        assert "blue, green, red" in told
        assert "'red'" not in told


def test_a_validation_class_that_training_does_not_know(refuses, fit_words, tmp_path):
    draw_split(tmp_path / "val", 3, seed=5, classes=("red", "banana"))
    assert "banana" in refuses(*fit_words, f"--data.validation_dir={tmp_path / 'val'}")


def test_a_class_missing_in_validation_is_fine(vitcls, fit_words, tmp_path):
    draw_split(tmp_path / "val", 3, seed=5, classes=("red", "green"))
    status, out, _ = vitcls(*fit_words, f"--data.validation_dir={tmp_path / 'val'}")
    assert status == 0
    assert "validation: 6 images, 2 of 3 classes" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--data.validation_fraction=1.5"], "--data.validation_fraction is 1.5; it must be between 0 and 1"),
        (["--data.batch_size=0"], "--data.batch_size is 0; it must be at least 1"),
        (["--data.batch_size=many"], "--data.batch_size is 'many'; it must be a whole number"),
        (["--data.resize=squish"], "--data.resize is 'squish'; it must be one of 'squash', 'crop', 'letterbox'"),
        (["--data.crop_scale=[0.9,0.1]"], "two rising numbers"),
        (["--model.lr=-1"], "--model.lr is -1.0; it must be above 0"),
        (["--model.checkpoint=null"], "Give either --model.checkpoint"),
        (["--model.train=head", "--model.adapter.r=4"], "exclude each other"),
        (["--data.train_dir=x"], "Two sources of training data"),
        (["--data.dataset=null"], "No training data"),
        (["--run_name=a/b"], "must be the name of one folder"),
        (["--trainer.accelerator=gpu"], "gpu"),
        (["--model.architecture.model_type=vitt", "--model.checkpoint=null"], "did you mean 'vit'"),
        (["--model.architecture.hiden_size=3", "--model.checkpoint=null"], "did you mean 'hidden_size'"),
    ],
)
def test_values_that_cannot_be(refuses, fit_words, words, part):
    assert part in refuses(*fit_words, *words)


def test_a_run_that_was_never_trained_has_no_classes(refuses, tiny_vit, colours):
    told = refuses("predict", "--model.checkpoint", tiny_vit, "--data.predict", colours / "test")
    assert "no classes yet" in told


def test_a_test_set_that_is_not_there(vitcls, refuses, fit_words, tmp_path):
    vitcls(*fit_words, "--data.train_split=test", "--trainer.max_epochs=1")
    told = refuses("test", "--ckpt_path", tmp_path / "runs" / "run", "--data.test_split=exam")
    assert "no split 'exam'" in told


def test_a_traceback_is_there_for_those_who_ask(vitcls, monkeypatch):
    """What leaves `main` is told by Python, with its traceback."""
    monkeypatch.setenv("VITCLS_TRACEBACK", "1")
    with pytest.raises(UserError, match=r"lr is -1"):
        vitcls("fit", "--model.lr=-1", "--model.checkpoint=x", "--data.dataset=digits")
