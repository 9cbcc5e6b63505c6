"""The learning rate that is found before a fit, and that nothing else of the fit depends on the search."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from tests.test_averaging import load
from vitcls import ImageDataModule, ViTClassifier
from vitcls.errors import UserError
from vitcls.rate_finding import HIGHEST, LOWEST, STEPS, RangeTest, _try_rates, find_rate, steepest

RATES = [LOWEST * (HIGHEST / LOWEST) ** (i / (STEPS - 1)) for i in range(STEPS)]


def test_the_rate_is_found_taken_and_written(vitcls, fit_words, tmp_path):
    """A fit of the config.yaml that it leaves is the same training, bit for bit."""
    words = ["--lr_find=true", "--model.adapter.r=2", "--model.adapter.b_lr_ratio=4", "--trainer.max_epochs=1"]
    status, out, err = vitcls(*fit_words, *words, "--trainer.accumulate_grad_batches=2", "--data.batch_size=10")
    assert status == 0, err
    run = tmp_path / "runs" / "run"
    said = yaml.safe_load((run / "config.yaml").read_text())
    assert 1e-4 < said["model"]["lr"] < 0.5
    assert said["lr_find"] is False
    assert f"falls fastest at --model.lr {said['model']['lr']:.3g}" in out
    with Image.open(run / "lr_find.png") as image:
        assert image.width > 100
    assert not [file for file in run.rglob("*") if "lr_find" in file.name and file.suffix != ".png"]
    content = load(run / "last.ckpt")
    assert content["hyper_parameters"]["lr"] == said["model"]["lr"]
    rates = {group["initial_lr"] for group in content["optimizer_states"][0]["param_groups"]}
    assert sorted(rates) == pytest.approx([said["model"]["lr"], 4 * said["model"]["lr"]])
    assert vitcls("fit", "--config", run / "config.yaml", "--run_name=again")[0] == 0
    again = load(tmp_path / "runs" / "again" / "last.ckpt")
    assert again["global_step"] == content["global_step"]
    for name, value in content["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name]), name


def test_the_steepest_descent_is_over_the_logarithm():
    """A loss that falls by a logistic curve around 1e-3 and rises at the end."""
    losses = [2 - 1 / (1 + math.exp(-4 * math.log10(rate / 1e-3))) + 50 * max(0, rate - 0.3) for rate in RATES]
    assert RATES[steepest(RATES, losses)] == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize("losses", [[1.0 + i for i in range(STEPS)], [2.0 - i / 10 for i in range(9)], [math.nan] * 50])
def test_a_loss_that_does_not_fall_has_none(losses):
    assert steepest(RATES, losses) is None


def test_several_processes_are_refused():
    with pytest.raises(UserError, match=r"find the rate with --trainer\.devices 1"):
        find_rate(None, None, SimpleNamespace(world_size=2), None)


def test_a_short_last_batch_is_no_progress(tiny_vit, colours):
    """54 images in batches of 10 leave one of 4: its mean loss counts like any other, not its share of a window."""
    data = ImageDataModule(str(colours), batch_size=10, num_workers=0)
    test = RangeTest()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    model = ViTClassifier(str(tiny_vit), lr=1e-4)
    _try_rates(test, model, data, trainer)
    assert len(test.rates) == len(test.losses) <= STEPS
    assert test.rates == pytest.approx(RATES[: len(test.rates)])
    assert test.losses[:12] == pytest.approx([1.1] * 12, abs=0.12)  # the rates are too low to learn anything yet
    assert model.network is None


@pytest.mark.parametrize("verb", ["validate", "fit"])
def test_it_belongs_to_the_beginning_of_a_fit(vitcls, refuses, fit_words, tmp_path, verb):
    assert vitcls(*fit_words, "--trainer.max_epochs=1")[0] == 0
    told = refuses(verb, "--ckpt_path", tmp_path / "runs" / "run", "--lr_find=true")
    assert "--lr_find true is for the beginning of a fit" in told


def test_a_resume_by_the_same_words_keeps_the_rate(vitcls, fit_words, tmp_path):
    """Where the first start was killed before its first checkpoint, and when it is to train longer."""
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "lr_find.png").touch()
    words = [*fit_words, "--lr_find=true", "--resume=true", "--model.schedule=constant"]
    rates = []
    for epochs in (1, 2):
        status, _, err = vitcls(*words, f"--trainer.max_epochs={epochs}")
        assert status == 0, err
        rates += [group["initial_lr"] for group in load(run / "last.ckpt")["optimizer_states"][0]["param_groups"]]
    assert len(set(rates)) == 1
    assert rates[0] != 1e-3  # of fit_words


def test_features_of_the_first_epochs_are_no_part_of_it(vitcls, fit_words):
    words = ["--lr_find=true", "--model.freeze_epochs=1", "--data.feature_views=1", "--trainer.max_epochs=1"]
    status, _, err = vitcls(*fit_words, *words, "--trainer.limit_val_batches=0", "--data.batch_size=2")
    assert status == 0, err


def test_the_same_words_take_the_run_up_at_the_rate_that_was_found(vitcls, fit_words, tmp_path):
    words = [*fit_words, "--lr_find=true", "--resume=true"]
    assert vitcls(*words, "--trainer.max_epochs=1")[0] == 0
    run = tmp_path / "runs" / "run"
    found, plot = load(run / "last.ckpt")["hyper_parameters"]["lr"], (run / "lr_find.png").read_bytes()
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert f"it goes on at its --model.lr {found:g}" in out
    content = load(run / "last.ckpt")
    assert (content["hyper_parameters"]["lr"], content["epoch"]) == (found, 1)
    assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == found
    assert (run / "lr_find.png").read_bytes() == plot
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert "the run is finished" in out


def test_the_rate_of_all_weights_is_searched_on_images(vitcls, fit_words):
    words = ["--lr_find=true", "--model.freeze_epochs=1", "--data.feature_views=1"]
    status, out, err = vitcls(*fit_words, *words)
    assert status == 0, err
    assert "falls fastest" in out
