import copy

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


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
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
