"""Averages of the weights, moving and of epochs: formulas, what is measured and kept, and how they are resumed."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy
from transformers import AutoModelForImageClassification

from vitcls.callbacks import AveragedWeights
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.models.folder import reload_difference

ROOT = Path(__file__).parents[1]
OVERLAY = ROOT / "configs" / "overlays" / "ema.yaml"
KINDS = {
    "all": [],
    "head": ["--model.train=head"],
    "lora": ["--model.adapter.r=2", "--model.adapter.dropout=0"],
}
PLAIN = ["--data.augment=none", "--model.schedule=constant", "--model.warmup_steps=2", "--model.lr=0.01"]


STOP = {"class_path": "tests.test_averaging.StopEarly"}


class StopEarly(Callback):
    """Ends the training after an epoch."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = True


class Trail(Callback):
    """Writes the weights after each optimiser step, and those that each validation measures."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save(state, self.folder / f"step{trainer.global_step}.pt")

    def on_validation_batch_start(self, trainer, pl_module, *args) -> None:
        if not trainer.sanity_checking:
            torch.save(pl_module.state_dict(), self.folder / f"measured{trainer.global_step}.pt")


def trail(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    file = folder / "trail.yaml"
    callback = {"class_path": "tests.test_averaging.Trail", "init_args": {"folder": str(folder)}}
    file.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return ["--config", file]


def load(file: Path):
    return torch.load(file, weights_only=True)


def rows(run: Path, column: str) -> list[str]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row[column] for row in csv.DictReader(file) if row[column]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_its_formula_and_is_what_is_measured_and_kept(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *PLAIN, *KINDS[kind], *trail(tmp_path / "trail"), "--config", OVERLAY]
    status, _, err = vitcls(*words)
    assert status == 0, err
    steps = [load(tmp_path / "trail" / f"step{step}.pt") for step in range(1, 9)]
    average = dict(steps[0])
    for made, weights in enumerate(steps[1:], 1):
        decay = min(0.999, (1 + made) / (10 + made))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    run = tmp_path / "runs" / "run"
    content = load(run / "last.ckpt")
    assert content["state_dict"].keys() == content["current_model_state"].keys()
    trained = [name for name in average if not torch.equal(steps[0][name], steps[-1][name])]
    assert trained
    assert set(trained) <= content["state_dict"].keys()
    assert (kind == "all") == (len(content["state_dict"]) == len(average))
    measured = load(tmp_path / "trail" / "measured8.pt")
    for name, kept in content["state_dict"].items():
        torch.testing.assert_close(kept, average[name], rtol=0, atol=1e-6)
        assert torch.equal(kept, measured[name])
        assert torch.equal(content["current_model_state"][name], steps[-1][name])
        if "classifier" in name:
            assert not torch.allclose(kept, steps[-1][name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_of_the_fit_are_those_of_what_it_keeps(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *PLAIN, *KINDS[kind], "--config", OVERLAY]
    assert vitcls(*words, "--trainer.max_epochs=3")[0] == 0
    run = tmp_path / "runs" / "run"
    logged = [float(value) for value in rows(run, "val/loss")]
    status, out, err = vitcls("validate", "--ckpt_path", run / "last.ckpt", "--trainer.enable_progress_bar=false")
    assert status == 0, err
    loss = next(float(word) for line in out.splitlines() if "val/loss" in line for word in line.split() if "." in word)
    assert loss == pytest.approx(logged[-1], abs=1e-6)
    model = ViTClassifier.load_from_checkpoint(run / "best.ckpt", weights_only=True)
    assert reload_difference(model, run / "model", torch.randn(2, 3, 32, 32)) == 0
    if kind == "all":
        network = AutoModelForImageClassification.from_pretrained(run / "model")
        kept = load(run / "best.ckpt")["state_dict"]["network.classifier.weight"]
        assert torch.equal(network.classifier.weight, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_bit_for_bit(vitcls, fit_words, tmp_path, kind):
    """The tiny ViT has no dropout, the schedule no length: two and two epochs are four."""
    words = [*fit_words, *PLAIN, *KINDS[kind], "--config", OVERLAY]
    assert vitcls(*words, "--run_name=whole", "--trainer.max_epochs=4")[0] == 0
    assert vitcls(*words, "--run_name=parts", "--trainer.max_epochs=2")[0] == 0
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.max_epochs=4")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 16
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key]), key


def test_an_interrupted_epoch_is_resumed_bit_for_bit(vitcls, fit_words, tmp_path, keeps_sigint):
    words = [*fit_words, *PLAIN, "--config", OVERLAY, "--trainer.max_epochs=2"]
    assert vitcls(*words, "--run_name=whole")[0] == 0
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [interrupt]}}))
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    run = tmp_path / "runs" / "parts"
    assert load(run / "last.ckpt")["averaging_state"]["n_averaged"] == load(run / "last.ckpt")["global_step"] == 6
    assert vitcls("fit", "--ckpt_path", run)[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key]), key


def test_an_average_can_begin_in_a_resume(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, *PLAIN)[0] == 0
    run = tmp_path / "runs" / "run"
    status, out, err = vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=3", "--config", OVERLAY)
    assert status == 0, err
    assert "the average starts with them" in out
    assert load(run / "last.ckpt")["averaging_state"]["n_averaged"] == 4


def test_a_resume_without_the_average_is_refused(vitcls, refuses, fit_words, tmp_path):
    assert vitcls(*fit_words, "--config", OVERLAY, "--trainer.max_epochs=1")[0] == 0
    words = ("fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.max_epochs=2", "--trainer.callbacks=null")
    assert "this resume has no such callback: it would go on from the average" in refuses(*words)
    assert vitcls("validate", "--ckpt_path", tmp_path / "runs" / "run")[0] == 0


def test_the_same_command_resumes_with_one_average(vitcls, fit_words, tmp_path):
    """`callbacks+` would put a second beside that of the run's own configuration."""
    words = [*fit_words, "--resume=true", "--trainer.max_epochs=1"]
    assert vitcls(*words, "--config", OVERLAY)[0] == 0
    assert vitcls(*words, "--config", OVERLAY, "--trainer.max_epochs=2")[0] == 0
    changed = tmp_path / "ema.yaml"
    changed.write_text(OVERLAY.read_text().replace("0.999", "0.5"))
    status, _, err = vitcls(*words, "--config", changed, "--trainer.max_epochs=3")
    assert status == 0, err
    (callback,) = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert callback["init_args"] == {"decay": 0.5}
    assert load(tmp_path / "runs" / "run" / "last.ckpt")["averaging_state"]["n_averaged"] == 12


def test_two_averages_of_one_training_are_refused(vitcls, refuses, fit_words, tmp_path):
    overlays = ["--config", OVERLAY, "--config", OVERLAY.with_name("swa.yaml")]
    assert "AveragedWeights, AveragedEpochs each put their average" in refuses(*fit_words, *overlays)
    assert "more than one stateful callback" in refuses(*fit_words, *overlays[:2], *overlays[:2])
    assert vitcls(*fit_words, "--config", OVERLAY, "--trainer.max_epochs=1")[0] == 0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "vitcls.callbacks.AveragedEpochs"}]}}))
    words = ("fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.max_epochs=2", "--config", other)
    assert "an average of its weights (AveragedWeights), and this resume has no such callback" in refuses(*words)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_overlay_goes_over_any_config(vitcls, config):
    said = yaml.safe_load(config.read_text())["trainer"].get("callbacks") or []
    status, out, err = vitcls("fit", "--config", config, "--config", OVERLAY, "--print_config")
    assert status == 0, err
    callbacks = [c["class_path"].rsplit(".", 1)[-1] for c in yaml.safe_load(out)["trainer"]["callbacks"]]
    assert callbacks == [*(c["class_path"].rsplit(".", 1)[-1] for c in said), "AveragedWeights"]


def test_indices_are_taken_over_and_not_averaged():
    averaged = [torch.tensor([3, 7])]
    AveragedWeights(0.999)._average(averaged, [torch.tensor([3, 8])], torch.tensor(100_000))
    assert averaged[0].tolist() == [3, 8]


def test_a_decay_that_cannot_be_is_a_sentence(refuses, fit_words, tmp_path):
    callback = {"class_path": "vitcls.callbacks.AveragedWeights", "init_args": {"decay": 1.5}}
    (tmp_path / "ema.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert "decay of AveragedWeights is 1.5; it must be at" in refuses(*fit_words, "--config", tmp_path / "ema.yaml")


def test_a_strategy_that_deals_out_the_weights_is_refused():
    trainer = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="needs the whole network in each process"):
        AveragedWeights().setup(trainer, ViTClassifier("x"), "fit")


def from_half(folder: Path) -> list[str]:
    """The words of the mean over the ends of the epochs from the half on."""
    callback = {"class_path": "vitcls.callbacks.AveragedEpochs", "init_args": {"start": 0.5}}
    (folder / "swa.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return ["--config", folder / "swa.yaml", "--trainer.max_epochs=4"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_epochs_is_measured_and_kept_from_its_start_on(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *PLAIN, *KINDS[kind], *trail(tmp_path / "trail"), *from_half(tmp_path)]
    status, _, err = vitcls(*words)
    assert status == 0, err
    ends = {step: load(tmp_path / "trail" / f"step{step}.pt") for step in (4, 8, 12, 16)}
    measured = {step: load(tmp_path / "trail" / f"measured{step}.pt") for step in ends}
    content = load(tmp_path / "runs" / "run" / "last.ckpt")
    assert content["averaging_state"]["n_averaged"] == 3
    trained = [name for name in ends[4] if not torch.equal(ends[4][name], ends[16][name])]
    assert trained
    for name in trained:
        assert torch.equal(measured[4][name], ends[4][name])  # not begun: the weights themselves
        for step, over in ((8, [8]), (12, [8, 12]), (16, [8, 12, 16])):
            mean = torch.stack([ends[end][name] for end in over]).mean(0)
            torch.testing.assert_close(measured[step][name], mean, rtol=0, atol=1e-6)
        assert torch.equal(content["state_dict"][name], measured[16][name])
        assert torch.equal(content["current_model_state"][name], ends[16][name])
        if "classifier" in name:
            assert not torch.allclose(measured[16][name], ends[16][name], rtol=0, atol=1e-5)


def test_figures_of_the_mean_are_those_of_what_is_kept(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, *PLAIN, *from_half(tmp_path))[0] == 0
    run = tmp_path / "runs" / "run"
    status, out, err = vitcls("validate", "--ckpt_path", run / "last.ckpt", "--trainer.enable_progress_bar=false")
    assert status == 0, err
    loss = next(float(word) for line in out.splitlines() if "val/loss" in line for word in line.split() if "." in word)
    assert loss == pytest.approx(float(rows(run, "val/loss")[-1]), abs=1e-6)
    model = ViTClassifier.load_from_checkpoint(run / "best.ckpt", weights_only=True)
    assert reload_difference(model, run / "model", torch.randn(2, 3, 32, 32)) == 0


@pytest.mark.parametrize("step", [3, 10, 14])  # before it begins, in its first epoch, in its second
def test_an_interrupted_mean_of_epochs_is_resumed_bit_for_bit(vitcls, fit_words, tmp_path, keeps_sigint, step):
    words = [*fit_words, *PLAIN, *from_half(tmp_path)]
    assert vitcls(*words, "--run_name=whole")[0] == 0
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": step}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [interrupt]}}))
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key]), key


def test_a_mean_that_has_begun_goes_on_in_a_longer_training(vitcls, fit_words, tmp_path):
    """At its new length it would begin later."""
    assert vitcls(*fit_words, *PLAIN, *from_half(tmp_path))[0] == 0
    run = tmp_path / "runs" / "run"
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [STOP]}}))
    words = ["--trainer.max_epochs=12", "--config", tmp_path / "stop.yaml"]  # it ends after its first epoch
    status, _, err = vitcls("fit", "--ckpt_path", run, *words)
    assert status == 0, err
    assert load(run / "last.ckpt")["global_step"] == 20
    assert load(run / "last.ckpt")["averaging_state"]["n_averaged"] == 4


def test_the_overlay_of_epochs_trains_and_a_mean_of_nothing_is_told(vitcls, fit_words, tmp_path):
    overlay = ROOT / "configs" / "overlays" / "swa.yaml"
    assert vitcls(*fit_words, "--config", overlay, "--trainer.max_epochs=4")[0] == 0
    assert load(tmp_path / "runs" / "run" / "last.ckpt")["averaging_state"]["n_averaged"] == 2
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [STOP]}}))
    status, out, _ = vitcls(*fit_words, "--config", overlay, "--config", tmp_path / "stop.yaml")
    assert status == 0
    assert "AveragedEpochs averaged nothing" in out
    assert "current_model_state" not in load(tmp_path / "runs" / "run-v1" / "last.ckpt")


def test_batch_norms_that_train_have_no_mean_of_epochs(refuses, fit_words, tmp_path):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    image = {"size": 32, "resize_to": 32, "resize": "squash", "interpolation": "bilinear"}
    image |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    file = tmp_path / "resnet.yaml"
    file.write_text(yaml.safe_dump({"model": {"checkpoint": None, "architecture": resnet, "image": image}}))
    words = [word for word in fit_words if "model.checkpoint" not in word]
    told = refuses(*words, "--config", file, *from_half(tmp_path))
    assert "ResNetForImageClassification has some" in told


def test_a_start_that_cannot_be_is_a_sentence(refuses, fit_words, tmp_path):
    callback = {"class_path": "vitcls.callbacks.AveragedEpochs", "init_args": {"start": 1.0}}
    (tmp_path / "swa.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert "start of AveragedEpochs is 1.0; it must be at" in refuses(*fit_words, "--config", tmp_path / "swa.yaml")
