"""A loss or gradient that is not finite, steps that float16 skips, and gradients that go astray."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision

from tests.conftest import TINY
from tests.killing import in_two_children
from vitcls import ImageDataModule, ViTClassifier
from vitcls.callbacks import BadSteps
from vitcls.callbacks.gradients import check_gradients
from vitcls.errors import UserError
from vitcls.models.network import from_architecture, train_head_only


class Spoil(Callback):
    """Puts a NaN into the images of some batches, or into a gradient, and keeps which images those were."""

    def __init__(self, batches: list[int], file: str, what: str = "images", process: int = 0) -> None:
        self.batches, self.file, self.what, self.process = batches, Path(file), what, process

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx in self.batches and trainer.global_rank == self.process:
            self.file.write_text(", ".join(map(str, batch["ids"].tolist())))
            if self.what == "images":
                batch["pixel_values"][0, 0, 0, 0] = torch.nan

    def on_after_backward(self, trainer, pl_module) -> None:
        if self.what == "gradient" and trainer.fit_loop.batch_idx in self.batches:
            pl_module.network.classifier.weight.grad[0, 0] = torch.inf


class KeepWeights(Callback):
    """The weights after each optimiser step."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_step}.pt")


@pytest.fixture
def spoiled(tmp_path):
    def words(batches: list[int], **more) -> list[object]:
        said = {"batches": batches, "file": str(tmp_path / "ids.txt"), **more}
        spoil = {"class_path": "tests.test_bad_steps.Spoil", "init_args": said}
        keep = {"class_path": "tests.test_bad_steps.KeepWeights", "init_args": {"folder": str(tmp_path)}}
        often = {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1}}
        (tmp_path / "spoil.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [spoil, keep, often]}}))
        return ["--config", tmp_path / "spoil.yaml"]

    return words


def figures(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_step_its_images_and_the_last_checkpoint_are_named(refuses, fit_words, spoiled, tmp_path):
    told = refuses(*fit_words, *spoiled([2]))
    assert "The training diverged: the loss is nan in step 3" in told
    assert f"of ids {', '.join((tmp_path / 'ids.txt').read_text().split(', ')[:40])}." in told
    last = tmp_path / "runs" / "run" / "last.ckpt"
    assert f"The last checkpoint is {last}, of step 2" in told
    weights = torch.load(last, weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_gradient_that_is_not_finite_is_no_better(refuses, fit_words, spoiled):
    told = refuses(*fit_words, *spoiled([1], what="gradient"))
    assert "The training diverged: the gradient is not finite in step 2" in told


def test_so_many_steps_may_be_left_out(vitcls, fit_words, spoiled, tmp_path):
    status, out, err = vitcls(*fit_words, *spoiled([2]), "--model.max_bad_steps=2")
    assert status == 0, err
    assert "in step 7" in out
    assert "the step is left out (2 of at most 2)" in out
    run = tmp_path / "runs" / "run"
    assert figures(run, "train/bad_steps") == [1, 1]
    assert all(loss == loss for loss in figures(run, "train/loss"))
    before, bad, after = (torch.load(tmp_path / f"{step}.pt", weights_only=True) for step in (2, 3, 4))
    assert all(torch.equal(before[name], bad[name]) for name in before)
    assert not all(torch.equal(bad[name], after[name]) for name in before)


def test_one_more_is_too_many_also_after_a_resume(vitcls, refuses, fit_words, spoiled, tmp_path):
    words = [*spoiled([2]), "--model.max_bad_steps=1"]
    assert vitcls(*fit_words, *words, "--trainer.max_epochs=1")[0] == 0
    told = refuses("fit", "--ckpt_path", tmp_path / "runs" / "run", *words, "--trainer.max_epochs=2")
    assert "--model.max_bad_steps (now 1)" in told
    assert "in step 7" in told


def test_of_an_accumulated_step_the_bad_batch_is_named(refuses, fit_words, spoiled, tmp_path):
    told = refuses(*fit_words, *spoiled([1]), "--trainer.accumulate_grad_batches=2", "--data.batch_size=8")
    assert "the loss is nan in step 1" in told
    assert f"of ids {(tmp_path / 'ids.txt').read_text()}." in told


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first step is skipped
def test_steps_that_float16_skips_are_counted(tiny_vit, colours):
    """A scale of 2**40 is too much for any float16 gradient; each step halves it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet["enable_model_summary"] = False
    trainer = Trainer(accelerator="cpu", max_epochs=1, plugins=[precision], callbacks=[BadSteps()], **quiet)
    model = ViTClassifier(str(tiny_vit), warmup_steps=0)
    trainer.fit(model, ImageDataModule(str(colours), batch_size=4, num_workers=0))
    skipped = trainer.callback_metrics["train/skipped_steps"].item()
    assert 0 < skipped <= 14
    assert scaler.get_scale() == 2.0 ** (40 - skipped)


def test_a_bad_loss_in_one_process_ends_both_and_the_first_tells_its_images(fit_words, spoiled, tmp_path):
    log = tmp_path / "log.txt"
    assert in_two_children([*fit_words, *spoiled([1], process=1)], log) == 2
    told = [line for line in log.read_text().splitlines() if line.startswith("vitcls: ")]
    assert len(told) == 1
    assert "the loss is nan in step 2" in told[0]
    assert f"of ids {(tmp_path / 'ids.txt').read_text()}." in told[0]
    assert "Traceback" not in log.read_text()


def test_a_number_of_bad_steps_that_cannot_be(refuses, fit_words):
    assert "--model.max_bad_steps is -1; it must be at least 0" in refuses(*fit_words, "--model.max_bad_steps=-1")


# -- gradients that go astray --------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    sizes = {name: size for name, size in TINY.items() if name != "intermediate_size"}
    return from_architecture({"model_type": "dinov2", **sizes}, ["a", "b"])


def backward(model) -> None:
    model(pixel_values=torch.randn(2, 3, 32, 32)).logits.sum().backward()


def test_weights_that_pretraining_alone_uses_are_no_error():
    model = network()
    backward(model)
    check_gradients(model, all_train=True)


def test_a_part_that_was_chosen_and_got_nothing_is_named():
    model = network()
    train_head_only(model)
    model.dinov2.embeddings.mask_token.requires_grad_(True)
    backward(model)
    with pytest.raises(UserError, match=r"1 of 3 weights .* got no gradient: dinov2\.embeddings\.mask_token\."):
        check_gradients(model, all_train=False)


def test_a_network_below_its_head_that_got_nothing_is_an_error():
    model = network()
    model.dinov2.register_forward_hook(lambda _, __, out: out.__class__(out[0].detach()))
    backward(model)
    with pytest.raises(UserError, match="got no gradient"):
        check_gradients(model, all_train=True)


def test_a_frozen_weight_with_a_gradient_is_an_error():
    model = network()
    backward(model)
    model.classifier.weight.requires_grad_(False)
    with pytest.raises(UserError, match=re.escape("1 frozen weights got gradients: classifier.weight;")):
        check_gradients(model, all_train=True)


class Freeze(Callback):
    """Lets the last block's gradients get lost, as a callback that means well may do."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for parameter in pl_module.network.classifier.parameters():
            parameter.grad = None


def test_a_fit_looks_at_its_first_step(refuses, fit_words, tmp_path):
    callbacks = [{"class_path": "tests.test_bad_steps.Freeze"}]
    (tmp_path / "freeze.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    told = refuses(*fit_words, "--config", tmp_path / "freeze.yaml")
    assert "got no gradient: classifier.weight, classifier.bias" in told


def test_a_last_step_that_spoils_the_weights_is_told(refuses, fit_words, tmp_path):
    """No loss follows it but that of the validation."""
    told = refuses(*fit_words, "--model.lr=1e30", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    assert "The training diverged: of validation images" in told
    assert not (tmp_path / "runs" / "run" / "model").exists()
