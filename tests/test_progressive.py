"""Smaller training images in early epochs: their sizes, what is kept, and how it is resumed."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F  # noqa: N812
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.conftest import TINY
from tests.test_adapters import FAMILIES
from vitcls import ImageDataModule, ViTClassifier
from vitcls.callbacks import ProgressiveSize
from vitcls.models.input_size import at_size
from vitcls.models.network import from_architecture

ROOT = Path(__file__).parents[1]
OVERLAY = ROOT / "configs" / "overlays" / "progressive.yaml"


class Sides(Callback):
    """Writes the side of what the network is given, for each step: `epoch train|val side`, `epoch teacher whole`."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def setup(self, trainer, pl_module, stage) -> None:
        pl_module.configure_model()

        pl_module.network.register_forward_pre_hook(partial(self._note, trainer, ""), with_kwargs=True)
        if pl_module._distilling is not None:
            network = pl_module._distilling.teacher._network
            network.register_forward_pre_hook(partial(self._note, trainer, "teacher"), with_kwargs=True)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.whole = batch["pixel_values"]

    def _note(self, trainer, who, network, args, words) -> None:
        if not trainer.sanity_checking and trainer.state.stage is not None:
            side = words["pixel_values"].shape[-1]
            side = "whole" if who == "teacher" and torch.equal(words["pixel_values"], self.whole) else side
            who = who or ("train" if network.training else "val")
            with self.file.open("a") as file:
                file.write(f"{trainer.current_epoch} {who} {side}\n")


def sized(folder: Path, sizes: dict[int, int]) -> list[str]:
    """The words that train by these sizes, and that write what the network was given to sides.txt."""
    callbacks = [
        {"class_path": "vitcls.callbacks.ProgressiveSize", "init_args": {"sizes": sizes}},
        {"class_path": "tests.test_progressive.Sides", "init_args": {"file": str(folder / "sides.txt")}},
    ]
    file = folder / "sizes.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}))
    return ["--config", file]


def seen(folder: Path) -> set[str]:
    return set((folder / "sides.txt").read_text().splitlines())


def load(file):
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [[], ["--model.adapter.r=2", "--model.adapter.dropout=0"]], ids=["all", "lora"])
def test_images_grow_by_the_epoch_and_validation_sees_them_whole(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *kind, *sized(tmp_path, {1: 16, 2: 24, 3: 32}), "--trainer.max_epochs=4"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert seen(tmp_path) == {"0 train 32", "1 train 16", "2 train 24", "3 train 32"} | {
        f"{i} val 32" for i in range(4)
    }
    for epoch, size in ((1, 16), (2, 24), (3, 32)):
        assert f"epoch {epoch}: training images of {size} pixels" in out
    assert "warning" not in err
    run = tmp_path / "runs" / "run"
    model = ViTClassifier.load_from_checkpoint(run / "best.ckpt", weights_only=True)
    assert model.image_spec.size == 32
    assert vitcls("test", "--ckpt_path", run, "--trainer.enable_progress_bar=false")[0] == 0


def test_position_embeddings_are_the_models_own_and_learn(tiny_vit):
    """The network's own interpolation of the checkpoint's, nothing drawn anew."""
    model = ViTClassifier(str(tiny_vit), labels=["a", "b", "c"])
    model.configure_model()
    pixels = torch.randn(2, 3, 32, 32)
    model.train_size = 16
    logits = model(at_size(pixels, 16))
    theirs = ViTForImageClassification.from_pretrained(tiny_vit).vit
    with torch.no_grad():
        table = theirs.embeddings.position_embeddings
        grid = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        small = F.interpolate(grid, size=(2, 2), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 4, -1)
        patches = theirs.embeddings.patch_embeddings(at_size(pixels, 16))
        cls = theirs.embeddings.cls_token.expand(2, -1, -1)
        hidden = torch.cat([cls, patches], 1) + torch.cat([table[:, :1], small], 1)
        for layer in theirs.layers:
            hidden = layer(hidden)
        expected = model.network.classifier(theirs.layernorm(hidden)[:, 0])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert model.network.vit.embeddings.position_embeddings.grad.abs().sum() > 0
    model.train_size = None
    torch.testing.assert_close(
        model(pixels), model.network(pixel_values=pixels, interpolate_pos_encoding=True).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_trains_on_smaller_images(family, tmp_path, colours):
    torch.manual_seed(0)
    network = from_architecture({"model_type": family, **FAMILIES[family]}, ["blue", "green", "red"])
    network.save_pretrained(tmp_path / "network")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "network")
    model = ViTClassifier(str(tmp_path / "network"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [ProgressiveSize({0: 16, 1: 32}), Sides(str(tmp_path / "sides.txt"))]
    quiet |= {"limit_train_batches": 1, "limit_val_batches": 1, "enable_model_summary": False}
    Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, **quiet).fit(
        model, ImageDataModule(str(colours), batch_size=8, num_workers=0)
    )
    assert seen(tmp_path) == {"0 train 16", "0 val 32", "1 train 32", "1 val 32"}


def test_batch_norms_under_frozen_weights_stay_as_they_are(tmp_path, colours):
    torch.manual_seed(0)
    network = from_architecture({"model_type": "resnet", **FAMILIES["resnet"]}, ["blue", "green", "red"])
    network.save_pretrained(tmp_path / "network")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "network")
    model = ViTClassifier(str(tmp_path / "network"), train="head")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"limit_train_batches": 1, "limit_val_batches": 1, "enable_model_summary": False, "max_epochs": 1}
    Trainer(accelerator="cpu", callbacks=[ProgressiveSize({0: 16})], **quiet).fit(
        model, ImageDataModule(str(colours), batch_size=8, num_workers=0)
    )
    means = [value for name, value in model.network.state_dict().items() if name.endswith("running_mean")]
    assert means
    assert not any(value.any() for value in means)  # as they were made


def test_a_size_of_the_model_is_a_training_without(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, "--run_name=plain")[0] == 0
    assert vitcls(*fit_words, *sized(tmp_path, {0: 32}))[0] == 0
    plain, run = (load(tmp_path / "runs" / name / "last.ckpt")["state_dict"] for name in ("plain", "run"))
    torch.testing.assert_close(plain, run, rtol=0, atol=0)


def test_an_interrupted_training_is_resumed_bit_for_bit(vitcls, fit_words, tmp_path, keeps_sigint):
    """In the middle of an epoch of small images."""
    words = [*fit_words, "--data.augment=none", "--trainer.max_epochs=3", *sized(tmp_path, {0: 16, 1: 24, 2: 32})]
    assert vitcls(*words, "--run_name=whole")[0] == 0
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [interrupt]}}))
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 12
    torch.testing.assert_close(whole["state_dict"], parts["state_dict"], rtol=0, atol=0)


def test_a_teacher_sees_the_images_whole(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, "--run_name=teacher", "--trainer.max_epochs=1")[0] == 0
    words = [*fit_words, f"--model.distill.teacher={tmp_path / 'runs' / 'teacher'}", "--trainer.max_epochs=1"]
    status, _, err = vitcls(*words, *sized(tmp_path, {0: 16}))
    assert status == 0, err
    assert seen(tmp_path) == {"0 train 16", "0 teacher whole", "0 val 32"}


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({0: 20}, "A size of ProgressiveSize is 20; it must be a multiple of the network's patches of 8 pixels"),
        ({0: 40}, "ProgressiveSize has the size 40; it must be at least 1 and at most the model's 32 pixels"),
        ({-1: 16}, "say from which epoch (from 0) which side"),
        ({}, "say from which epoch (from 0) which side"),
    ],
)
def test_sizes_that_cannot_be_are_a_sentence(refuses, fit_words, tmp_path, sizes, told):
    assert told in refuses(*fit_words, *sized(tmp_path, sizes))


def test_a_network_that_takes_one_size_is_refused(refuses, fit_words, tmp_path):
    network = from_architecture({"model_type": "vit_msn", **TINY}, ["blue", "green", "red"])
    network.save_pretrained(tmp_path / "msn")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "msn")
    told = refuses(*fit_words, f"--model.checkpoint={tmp_path / 'msn'}", *sized(tmp_path, {0: 16}))
    assert "type 'vit_msn' does not take images of 16 pixels" in told
    assert "ViT, DeiT, BEiT, DINOv2, Swin, ConvNeXt, ResNet do" in told


def test_a_training_that_ends_on_small_images_is_told(vitcls, fit_words, tmp_path):
    status, out, _ = vitcls(*fit_words, *sized(tmp_path, {0: 16, 9: 32}))
    assert status == 0
    assert "the last epoch trains on images of 16 pixels, and the model is kept for 32" in out
    assert "computes features of images of" not in out


def test_features_that_are_of_large_images_are_told(vitcls, fit_words, tmp_path):
    words = ["--model.train=head", "--data.feature_views=1", "--trainer.max_epochs=1"]
    status, out, _ = vitcls(*fit_words, *words, *sized(tmp_path, {0: 16}))
    assert status == 0
    assert "ProgressiveSize: --data.feature_views computes features of images of 32 pixels" in out


def test_the_overlay_trains(vitcls, fit_words, tmp_path):
    ViTForImageClassification(ViTConfig(**{**TINY, "image_size": 224, "patch_size": 16})).save_pretrained(
        tmp_path / "v"
    )
    ViTImageProcessor().save_pretrained(tmp_path / "v")
    words = [*fit_words, f"--model.checkpoint={tmp_path / 'v'}", "--trainer.max_epochs=7", "--config", OVERLAY]
    status, out, err = vitcls(*words, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
    assert status == 0, err
    for epoch, size in ((0, 128), (3, 160), (6, 224)):
        assert f"epoch {epoch}: training images of {size} pixels" in out


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("overlay", ["progressive", "swa", "distill"])
def test_overlays_go_over_any_config(vitcls, config, overlay):
    words = ["fit", "--config", config, "--config", ROOT / "configs" / "overlays" / f"{overlay}.yaml", "--print_config"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert yaml.safe_load(out)["model"]["lr"] > 0
