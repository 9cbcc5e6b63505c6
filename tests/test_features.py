"""Features that are computed once, in the place of images."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from transformers import ViTImageProcessor

from tests.conftest import draw_split
from tests.test_averaging import load
from vitcls import ImageDataModule, LoRA, ViTClassifier
from vitcls.data.sampling import Draw
from vitcls.errors import UserError
from vitcls.methods.networks import network_of

HEAD = ["--model.train=head", "--model.lr=0.05", "--trainer.max_epochs=3"]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FIGURES = ("train/loss", "val/loss", "val/accuracy")


class RemoveImages(Callback):
    """From the first step on there are no images any more."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_start(self, trainer, pl_module) -> None:
        shutil.rmtree(self.folder)


def figures(run: Path) -> dict[str, float]:
    return {name: load(run / "last.ckpt")["vitcls"]["metrics"][name] for name in FIGURES}


def fitted(network: Path, data: ImageDataModule, **of_model) -> tuple[ViTClassifier, Trainer]:
    torch.manual_seed(0)
    model = ViTClassifier(str(network), train="head", lr=0.05, **of_model)
    trainer = Trainer(accelerator="cpu", max_epochs=2, **QUIET)
    trainer.fit(model, data)
    return model, trainer


def test_a_head_learns_the_same_from_features_as_from_images(vitcls, fit_words, tmp_path):
    words = [*fit_words, *HEAD, "--data.augment=none"]
    assert vitcls(*words, "--run_name=images")[0] == 0
    assert vitcls(*words, "--run_name=features", "--data.feature_views=1")[0] == 0
    images, features = (tmp_path / "runs" / name for name in ("images", "features"))
    torch.testing.assert_close(load(features / "last.ckpt")["state_dict"], load(images / "last.ckpt")["state_dict"])
    assert figures(features) == pytest.approx(figures(images), abs=1e-5)


def test_validate_sees_what_fit_saw(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, *HEAD, "--data.feature_views=2", "--data.tta=flip")[0] == 0
    run = tmp_path / "runs" / "run"
    status, out, _ = vitcls("validate", "--ckpt_path", run, "--trainer.enable_progress_bar=false")
    assert status == 0
    assert str(load(run / "best.ckpt")["vitcls"]["metrics"]["val/loss"])[:8] in out


def test_no_image_is_read_once_the_features_are_there(vitcls, fit_words, tmp_path, colours):
    draw_split(tmp_path / "photos", 8, seed=1)
    remove = {"class_path": "tests.test_features.RemoveImages", "init_args": {"folder": str(tmp_path / "photos")}}
    (tmp_path / "remove.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [remove]}}))
    words = [word for word in fit_words if "data.dataset" not in word] + ["--data.train_dir", tmp_path / "photos"]
    words += [*HEAD, "--config", tmp_path / "remove.yaml", "--data.validation_dir", colours / "test"]
    status, _, err = vitcls(*words, "--data.feature_views=2")
    assert status == 0, err
    assert not (tmp_path / "photos").exists()


def test_a_view_is_the_images_with_its_own_augmentation(tiny_vit, colours):
    data = ImageDataModule(str(colours), batch_size=8, num_workers=0, feature_views=2)
    fitted(tiny_vit, data)
    rows = data._train_loader.dataset
    assert rows._views[0].values.shape == (len(rows), 32)
    assert not torch.allclose(rows._views[0].values, rows._views[1].values, atol=1e-3)
    draw = Draw(3, seed=5, of_features=True)  # odd: the second view
    assert torch.equal(rows[draw].pixels, rows._views[1].values[3])
    assert rows[draw].label == rows[Draw(3, 5)].label
    assert rows[Draw(3, 5)].pixels.shape == (3, 32, 32)


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "swin", "dinov2", "convnext", "resnet"])
def test_the_head_of_every_family_makes_the_networks_logits(family, tmp_path, colours):
    network_of(family).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, trainer = fitted(tmp_path, ImageDataModule(str(colours), batch_size=16, num_workers=0, feature_views=1))
    model.eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.features(pixels)), model.logits(pixels))
        views = torch.stack([pixels, pixels.flip(-1)], dim=1)
        torch.testing.assert_close(model.logits(model.features(views)), model.logits(views))
    assert trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.parametrize("adapter", [None, {"r": 2, "dropout": 0.0}])
def test_a_probe_on_features_is_that_on_images_and_then_all_weights_train(vitcls, fit_words, tmp_path, adapter):
    said = {"adapter": adapter, "freeze_epochs": 2, "lr": 0.01, "warmup_fraction": 0.0, "schedule": "constant"}
    (tmp_path / "said.yaml").write_text(yaml.safe_dump({"model": said, "trainer": {"max_epochs": 3}}))
    words = [*fit_words, "--config", tmp_path / "said.yaml", "--data.augment=none"]
    words = [word for word in words if "max_epochs" not in str(word) and "model.lr" not in str(word)]
    assert vitcls(*words, "--run_name=images")[0] == 0
    assert vitcls(*words, "--run_name=features", "--data.feature_views=1")[0] == 0
    images, features = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("images", "features"))
    torch.testing.assert_close(features["state_dict"], images["state_dict"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("frozen", ["--model.train=head", "--model.freeze_epochs=1"])
def test_a_resume_is_bit_for_bit(vitcls, fit_words, tmp_path, keeps_sigint, frozen, step):
    words = [*fit_words, frozen, "--data.feature_views=3"]
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": step}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    assert vitcls(*words, "--run_name=whole")[0] == 0
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.callbacks=null")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 8
    torch.testing.assert_close(whole["state_dict"], parts["state_dict"], rtol=0, atol=0)


def test_no_features_are_computed_for_epochs_that_are_over(vitcls, fit_words, tmp_path, keeps_sigint, monkeypatch):
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}  # of 4 in an epoch
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    words = [*fit_words, "--model.freeze_epochs=1", "--data.feature_views=1", "--config", tmp_path / "interrupt.yaml"]
    assert vitcls(*words)[0] == 130
    monkeypatch.setattr(ViTClassifier, "features", None)
    status, _, err = vitcls("fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.callbacks=null")
    assert status == 0, err


@pytest.mark.parametrize("policy", ["skip", "blank"])
def test_bad_images_are_told_and_counted(tiny_vit, tmp_path, policy, caplog):
    draw_split(tmp_path / "photos" / "train", 10, seed=1)
    for name in ("000", "001"):
        (tmp_path / "photos" / "train" / "red" / f"{name}.jpg").write_bytes(b"no image")
    bad = {"on_bad_image": policy, "max_bad_fraction": 0.9}
    data = ImageDataModule(str(tmp_path / "photos"), batch_size=8, num_workers=0, feature_views=1, **bad)
    fitted(tiny_vit, data)
    rows = data._train_loader.dataset
    validated = 3 - len(data._bad_images._met["validation"][1])
    assert validated in (1, 2, 3)
    met = [item for item in (rows[Draw(n, 0, of_features=True)] for n in range(len(rows))) if item.bad]
    assert len(met) == len(data._bad_images._met["train"][1])
    assert all(item.pixels.shape == (32,) for item in met)
    assert caplog.text.count("cannot be decoded") == 2


def test_a_bad_image_ends_the_run_before_anything_is_trained(refuses, fit_words, tmp_path):
    draw_split(tmp_path / "photos", 8, seed=1)
    (tmp_path / "photos" / "red" / "000.jpg").write_bytes(b"no image")
    words = [word for word in fit_words if "data.dataset" not in word] + ["--data.train_dir", tmp_path / "photos"]
    assert "000.jpg" in refuses(*words, *HEAD, "--data.feature_views=2", "--data.validation_fraction=0.3")


def test_several_labels_work_too(tiny_vit, tmp_path):
    draw_split(tmp_path / "train", 6, seed=1)
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    lines = [f"{file},{file.parent.name}|{'all' if n % 2 else 'odd'}" for n, file in enumerate(files)]
    (tmp_path / "train.csv").write_text("\n".join(["image,labels", *lines]))
    data = {"label_delimiter": "|", "validation_fraction": 0.3, "num_workers": 0, "feature_views": 1}
    _, trainer = fitted(tiny_vit, ImageDataModule(train_files=str(tmp_path / "train.csv"), **data), task="multilabel")
    assert trainer.callback_metrics["val/map"].isfinite()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--data.feature_views 2 is for a head that trains on its own; say --model.train head"),
        ([*HEAD, "--data.mixup=0.2"], "--data.mixup 0.2 needs the images of each epoch"),
        ([*HEAD, "--data.cutmix=1"], "--data.cutmix 1.0 needs the images of each epoch"),
        ([*HEAD, "--trainer.overfit_batches=2"], "each epoch, which --data.feature_views 2 cannot give"),
        ([*HEAD, "--data.feature_views=-1"], "--data.feature_views is -1; it must be at least 0"),
    ],
)
def test_features_that_cannot_be_are_refused(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, "--data.feature_views=2", *words)


def test_a_network_with_two_heads_has_no_features_of_one(tiny_vit, colours):
    model, _ = fitted(tiny_vit, ImageDataModule(str(colours), num_workers=0))
    model.network.second = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="2 heads"):
        model.features(torch.randn(1, 3, 32, 32))


def test_below_an_adapter_the_head_is_found(tiny_vit, colours):
    model = ViTClassifier(str(tiny_vit), adapter=LoRA(r=2), freeze_epochs=1, lr=0.01)
    trainer = Trainer(accelerator="cpu", max_epochs=2, **QUIET)
    trainer.fit(model, ImageDataModule(str(colours), num_workers=0, feature_views=1))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().logits(model.features(pixels)), model(pixels))


def test_features_are_of_evaluation_mode_and_leave_the_mode_alone(tiny_vit, colours):
    model = ViTClassifier(str(tiny_vit), adapter=LoRA(r=2, dropout=0.5), freeze_epochs=1)
    trainer = Trainer(accelerator="cpu", max_steps=1, **QUIET)
    trainer.fit(model, ImageDataModule(str(colours), num_workers=0))
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.train()
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.features(pixels), model.features(pixels))
    assert all(module.training for module in model.network.modules())


def test_a_teacher_needs_the_images(refuses, fit_words, vitcls, tmp_path):
    assert vitcls(*fit_words, "--run_name=teacher")[0] == 0
    words = [*fit_words, *HEAD, "--data.feature_views=1", "--model.distill.teacher", tmp_path / "runs" / "teacher"]
    assert "A teacher (--model.distill) looks at the images of each epoch" in refuses(*words)
