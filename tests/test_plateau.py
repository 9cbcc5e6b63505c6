"""Learning rates that fall where validation no longer gets better."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.test_averaging import load

# Gradients clipped to nothing: no epoch after the first improves.
RISING = ["--model.lr=1", "--model.optimizer=torch.optim.SGD", "--model.schedule=constant", "--trainer.max_epochs=5"]
RISING += ["--model.warmup_steps=2", "--trainer.gradient_clip_val=1e-6"]


class Rates(Callback):
    """Writes the rate of each step."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module) -> None:
        self.file.write_text(json.dumps(self.rates))


def overlay(tmp_path, name, *more, **said):
    callbacks = [
        {"class_path": "vitcls.callbacks.RateOnPlateau", "init_args": {"patience": 0, **said}},
        {"class_path": "tests.test_plateau.Rates", "init_args": {"file": str(tmp_path / f"{name}.json")}},
        *more,
    ]
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return ["--config", file]


def rates(tmp_path, name):
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_the_rate_falls_after_epochs_without_improvement_and_keeps_its_warm_up(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, *RISING, *overlay(tmp_path, "rates", factor=0.5, patience=1))[0] == 0
    of_steps = rates(tmp_path, "rates")  # four in an epoch
    assert of_steps[:3] == [0, 0.5, 1]
    assert of_steps[2:12] == [1] * 10
    assert of_steps[12:] == [0.5] * 8


@pytest.mark.parametrize("step", [6, 11])
def test_a_resume_goes_on_with_the_lowered_rate(vitcls, fit_words, tmp_path, keeps_sigint, step):
    whole = [*fit_words, *RISING, "--run_name=whole", *overlay(tmp_path, "whole")]
    assert vitcls(*whole)[0] == 0
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": step}}
    words = [*fit_words, *RISING, "--run_name=parts"]
    assert vitcls(*words, *overlay(tmp_path, "parts", interrupt))[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", *overlay(tmp_path, "rest"))[0] == 0
    assert rates(tmp_path, "rest") == rates(tmp_path, "whole")[step:]
    ends = [load(tmp_path / "runs" / name / "last.ckpt")["state_dict"] for name in ("whole", "parts")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"factor": 1.0}, "factor (RateOnPlateau) is 1.0; it must be above 0 and below 1"),
        ({"patience": -1}, "patience (RateOnPlateau) is -1; it must be at least 0"),
        ({"monitor": "val/los"}, "RateOnPlateau watches 'val/los', which is not measured (did you mean 'val/loss'?)"),
        ({"mode": "max"}, "RateOnPlateau watches 'val/loss' with mode 'max'"),
    ],
)
def test_what_cannot_be_is_refused(refuses, fit_words, tmp_path, said, told):
    callback = {"class_path": "vitcls.callbacks.RateOnPlateau", "init_args": said}
    (tmp_path / "said.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert told in refuses(*fit_words, "--config", tmp_path / "said.yaml")
