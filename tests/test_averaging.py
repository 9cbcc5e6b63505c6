"""The moving average of the weights: its formula, what is measured and kept of it, and how it is resumed."""

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
    assert "would go on from the average. Add it again" in refuses(*words)
    assert vitcls("validate", "--ckpt_path", tmp_path / "runs" / "run")[0] == 0


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
