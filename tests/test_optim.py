import copy
import csv
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from vitcls import ImageDataModule, ViTClassifier
from vitcls.errors import UserError
from vitcls.optim import build_optimizer, build_schedule, parameter_groups


class AfterSteps(Callback):
    """Keeps the weights after each optimiser step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > len(self.weights):
            self.weights.append(copy.deepcopy(pl_module.network.state_dict()))


def weights_after_steps(tiny_vit, colours, batch_size, accumulate):
    torch.manual_seed(0)
    # No augmentation and plain SGD: only the gradients' mean can make a difference.
    data = ImageDataModule(str(colours), batch_size=batch_size, num_workers=0, flip=0, crop_scale=(1.0, 1.0))
    model = ViTClassifier(str(tiny_vit), lr=0.5, warmup_fraction=0, optimizer=lambda groups: torch.optim.SGD(groups))
    kept = AfterSteps()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept],
    )
    trainer.fit(model, data)
    return kept.weights


@pytest.mark.parametrize(("small", "accumulate", "steps"), [(8, 2, 4), (4, 8, 2), (5, 3, 4), (7, 4, 2)])
def test_accumulating_makes_the_same_steps_as_one_large_batch(tiny_vit, colours, small, accumulate, steps):
    """54 images: the last window is short, and so is its last batch."""
    together = weights_after_steps(tiny_vit, colours, small * accumulate, 1)
    accumulated = weights_after_steps(tiny_vit, colours, small, accumulate)
    assert len(together) == len(accumulated) == steps
    for one, other in zip(together, accumulated, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("small", "accumulate"), [(8, 10), (5, 20), (27, 3), (54, 2)])
def test_a_window_that_never_fills_makes_the_step_of_all_images_at_once(tiny_vit, colours, small, accumulate):
    """The one batch of all 54 images needs no correction, so it is no part of what is tested."""
    (together,) = weights_after_steps(tiny_vit, colours, 54, 1)
    (accumulated,) = weights_after_steps(tiny_vit, colours, small, accumulate)
    for name in together:
        torch.testing.assert_close(together[name], accumulated[name], rtol=0, atol=1e-6)


def test_vectors_do_not_decay():
    groups = parameter_groups(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)), 0.1, 0.2)
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.2), (3, 0.0)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "polynomial", "warmup_stable_decay"])
def test_the_schedule_warms_up_linearly_and_ends_at_its_floor(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(name, optimizer, warmup_steps=4, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1.0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0 if name == "constant" else 0.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_rate_of_the_optimizers_own_is_refused():
    groups = parameter_groups(torch.nn.Linear(3, 2), lr=0.1, weight_decay=0.0)
    with pytest.raises(UserError, match=r"sets lr to 0.5, but the model's is 0.1"):
        build_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.5), groups, 0.1, 0.0)


def test_an_optimizer_of_the_users_takes_the_models_rate_and_decay():
    groups = parameter_groups(torch.nn.Linear(3, 2), lr=0.1, weight_decay=0.3)
    optimizer = build_optimizer(lambda groups: torch.optim.SGD(groups, momentum=0.9), groups, 0.1, 0.3)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [
        (0.1, 0.3, 0.9),
        (0.1, 0.0, 0.9),
    ]


def factors(name: str, warmup: int, total: int, **shape: float) -> list[float]:
    """The schedule at the steps 0..total, of a peak of 1; two groups of other rates must follow in proportion."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.25)]
    optimizer = torch.optim.AdamW(groups)
    schedule = build_schedule(name, optimizer, warmup, total, **shape)
    rates = []
    for _ in range(total + 1):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 4)
        rates.append(first)
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_polynomial_is_its_formula(power):
    expected = [step / 4 for step in range(4)] + [(1 - (step - 4) / 16) ** power for step in range(4, 21)]
    assert factors("polynomial", 4, 20, power=power) == pytest.approx(expected)


def test_polynomial_of_power_1_is_linear():
    assert factors("polynomial", 4, 20, power=1) == pytest.approx(factors("linear", 4, 20))


@pytest.mark.parametrize(("fraction", "steps"), [(0.2, 4), (0.5, 10), (0, 0), (0.8, 16), (1.0, 16)])
def test_warmup_stable_decay_is_its_formula(fraction, steps):
    """The last case: what the warm-up of 4 steps leaves is all that there is to fall in."""
    falling = [1 - math.sqrt(step / steps) for step in range(steps)]
    expected = [step / 4 for step in range(4)] + [1.0] * (16 - steps) + falling + [0.0]
    assert factors("warmup_stable_decay", 4, 20, decay_fraction=fraction) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["polynomial", "warmup_stable_decay"])
def test_a_warm_up_of_the_whole_training_divides_by_nothing(name):
    assert factors(name, 20, 20)[:20] == [step / 20 for step in range(20)]


@pytest.mark.parametrize(
    ("words", "total"),
    [(["--trainer.max_epochs=2"], 8), (["--trainer.max_epochs=-1", "--trainer.max_steps=6"], 6)],
)
def test_schedules_count_optimiser_steps(vitcls, fit_words, tmp_path, words, total):
    """54 images in batches of 8, two to a step: 4 steps in an epoch."""
    shape = ["--model.schedule=polynomial", "--model.schedule_power=3", "--model.warmup_steps=2", "--model.lr=0.1"]
    shape += ["--data.batch_size=8", "--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=1"]
    monitor = ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=step"]
    assert vitcls(*fit_words, *shape, *words, *monitor)[0] == 0
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("lr-AdamW/pg1")]
    rates = {int(row["step"]): float(row["lr-AdamW/pg1"]) for row in rows}
    expected = {s: 0.1 * (s / 2 if s < 2 else (1 - (s - 2) / (total - 2)) ** 3) for s in range(total)}
    # The monitor looks at the beginning of a batch: at the step that it belongs to.
    assert rates == pytest.approx(expected)


def test_a_rise_and_a_fall_longer_than_the_training_are_refused(refuses, fit_words):
    words = ["--model.schedule=warmup_stable_decay", "--model.warmup_fraction=0.6", "--model.decay_fraction=0.5"]
    assert "0.6 and --model.decay_fraction 0.5 are together more than the whole training" in refuses(*fit_words, *words)
    assert "--model.schedule_power is 0.0" in refuses(*fit_words, "--model.schedule_power=0")
