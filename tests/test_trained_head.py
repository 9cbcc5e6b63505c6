"""Nothing is measured or predicted with a head that nothing has trained."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from vitcls import ViTClassifier
from vitcls.errors import UserError
from vitcls.methods.networks import SIZE, network_of
from vitcls.methods.trial import Noise

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def named(tmp_path):
    """A checkpoint whose classes are called a and b."""
    network_of("vit").save_pretrained(tmp_path / "named")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "named")
    return tmp_path / "named"


@pytest.fixture
def headless(named):
    """The same, with its classes' names and without their weights."""
    file = named / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("classifier")}, file, {"format": "pt"})
    return named


def test_classes_without_names_take_those_that_are_given(vitcls, tiny_vit, colours, tmp_path):
    labels = [f"colour {n}" for n in range(7)]
    words = ("predict", "--model.checkpoint", tiny_vit, f"--model.labels={labels}", "--data.num_workers=0")
    assert vitcls(*words, "--data.predict", colours / "test" / "red", "--output", tmp_path / "p.csv")[0] == 0
    with (tmp_path / "p.csv").open(newline="") as lines:
        said = [row["label"] for row in csv.DictReader(lines)]
    saved = load_file(tiny_vit / "model.safetensors")
    model = ViTClassifier(str(tiny_vit), labels=labels)
    model.configure_model()
    assert torch.equal(model.network.classifier.weight, saved["classifier.weight"])
    assert len(set(said)) < len(said) == 7
    assert set(said) <= set(labels)


def test_other_classes_are_refused_by_all_verbs_but_fit(refuses, tiny_vit, named, colours, tmp_path):
    three = "--model.labels=[blue, green, red]"
    output = tmp_path / "p.csv"
    predict = ("predict", "--data.predict", colours / "test", "--data.num_workers=0", "--output", output)
    told = refuses(*predict, "--model.checkpoint", tiny_vit, three)
    assert "has no trained head for the classes blue, green, red: its 7 classes have no names. Give" in told
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))
    test = ("test", "--data.dataset", colours, "--data.num_workers=0", "--model.checkpoint", named, three)
    assert "for the classes blue, green, red: its classes are a, b. Give its own" in refuses(*test)
    assert "its classes are a, b" in refuses("validate", *test[1:])


def test_a_checkpoint_without_a_head_is_refused_under_its_own_names(refuses, headless, colours):
    words = ("predict", "--data.predict", colours / "test", "--model.checkpoint", headless, "--data.num_workers=0")
    assert "for the classes a, b: it has no weights of a head" in refuses(*words)


def test_what_was_trained_is_measured_without_a_word(named, tmp_path):
    """Fit starts a new head; after it, from a .ckpt and by load_from_checkpoint, the trained one is there."""
    quiet = {"accelerator": "cpu", "limit_val_batches": 1, **QUIET}
    fresh = [ViTClassifier(str(named), labels=["b", "a"], lr=1e-2, warmup_steps=0) for _ in range(3)]
    fresh[0].configure_model()
    with pytest.raises(UserError, match="its classes are a, b"):
        Trainer(**quiet).validate(fresh[0], Noise(), verbose=False)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=1, **quiet)
    data = Noise()
    data.labels = ["b", "a"]
    trainer.fit(fresh[1], data)
    trained = trainer.validate(fresh[1], data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    read = {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    assert Trainer(**quiet).validate(fresh[2], data, verbose=False, **read) == trained
    again = ViTClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert Trainer(**quiet).validate(again, data, verbose=False) == trained
