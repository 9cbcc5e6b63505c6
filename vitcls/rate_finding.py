"""`fit --lr_find true`: the learning rate at which the loss falls fastest, found on a copy before the training."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor

from vitcls.callbacks import MemoryAdvice
from vitcls.checkpoints import arguments_of
from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.runs import RANGE_TEST
from vitcls.trainer_options import QUIET

log = logging.getLogger(__name__)

STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
SMOOTHING = 0.9  # of the losses' moving average: about the last ten
DIVERGED = 4.0  # times the smallest loss, where the search ends; Lightning's own figure
FEWEST = 20  # steps, to tell a slope from noise
# What makes rates differ between layers or steps is left out: the search itself sets the rate of all.
_PLAIN = {"lr": LOWEST, "head_lr": None, "layer_decay": 1.0, "freeze_epochs": 0, "schedule": "constant"}
_PLAIN |= {"warmup_steps": 0, "compile": False}


class RangeTest(Callback):
    """Raises the rate from step to step and keeps the smoothed losses (Smith 2015, arXiv:1506.01186, section 3.3).

    Lightning's Tuner does not fit here: it takes the loss as it is weighed for its accumulation window, in which an
    epoch's last, short batch looks like progress, and suggests by the slope over the rate itself, which is steepest
    where the rates lie densest, at the lowest ones. Here it is the slope over the rate's logarithm.

    Attributes:
        rates: of the steps.
        losses: smoothed, after them.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._window: list[float] = []
        self._average = 0.0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Set the rate of this step."""
        self.rates.append(LOWEST * (HIGHEST / LOWEST) ** (len(self.rates) / (STEPS - 1)))
        for group in optimizer.param_groups:
            group["lr"] = self.rates[-1]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep the mean loss of a step's batches; end where it diverges."""
        self._window.append(float(trainer.callback_metrics["train/loss_step"]))
        if len(self.rates) == len(self.losses):
            return
        loss, self._window = sum(self._window) / len(self._window), []
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        self.losses.append(self._average / (1 - SMOOTHING ** len(self.rates)))
        trainer.should_stop |= not self.losses[-1] < DIVERGED * min(self.losses)  # also of NaN


def find_rate(model: ViTClassifier, datamodule: ImageDataModule, trainer: Trainer, run: Path | None) -> float:
    """The rate of the steepest descent; copies are trained, and nothing given is changed.

    Args:
        model: whose copy is trained for at most 100 steps.
        datamodule: whose training images are taken.
        trainer: of the training that follows; the search has its precision, accumulation and clipping.
        run: folder for the plot.

    Raises:
        UserError: the training has several processes, or the loss falls at no rate.
    """
    if trainer.world_size > 1:
        raise UserError(
            "--lr_find true searches in one process, and this training has several: find the rate with "
            "--trainer.devices 1, and give it with --model.lr."
        )
    test = RangeTest()
    with isolate_rng():
        _try_rates(test, model, datamodule, trainer)
    best = steepest(test.rates, test.losses)
    if run is not None:
        plot(test.rates, test.losses, best).savefig(run / RANGE_TEST)
    if best is None:
        raise UserError(
            f"--lr_find true finds no learning rate between {LOWEST:g} and {HIGHEST:g} at which the loss falls; give "
            "one with --model.lr."
        )
    log.info("the loss falls fastest at --model.lr %.3g, which is taken", test.rates[best])
    return float(f"{test.rates[best]:.3g}")


def steepest(rates: list[float], losses: list[float]) -> int | None:
    """Where the losses fall fastest over the logarithm of the rates, before the smallest; None if nowhere.

    Args:
        rates: rising.
        losses: smoothed.
    """
    finite = [loss for loss in losses if torch.isfinite(torch.tensor(loss))]
    if len(finite) < FEWEST:
        return None
    falling: Tensor = torch.gradient(torch.tensor(finite), spacing=(torch.tensor(rates[: len(finite)]).log(),))[0]
    # The first averages are of a few batches and go up and down with them.
    best = FEWEST // 2 + int(falling[FEWEST // 2 :].argmin())
    return best if falling[best] < 0 else None


def plot(rates: list[float], losses: list[float], best: int | None) -> Figure:
    """Losses over rates, with the one that is taken."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(rates[: len(losses)], losses)
    if best is not None:
        axes.axvline(rates[best], linestyle="--", color="grey", label=f"taken: {rates[best]:.3g}")
        axes.legend()
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed")
    return figure


def _try_rates(test: RangeTest, model: ViTClassifier, datamodule: ImageDataModule, trainer: Trainer) -> None:
    adapter = model.hparams["adapter"] and {**model.hparams["adapter"], "b_lr_ratio": 1.0}
    said = {**arguments_of(model.hparams), **_PLAIN, "adapter": adapter}
    data = arguments_of(datamodule.hparams)
    if model.hparams["train"] != "head":
        data["feature_views"] = 0  # of first epochs in which the head trains alone, which the search has none of
    searching = Trainer(
        accelerator=trainer.accelerator,
        devices=1,
        precision=trainer.precision,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        max_epochs=-1,
        max_steps=STEPS,
        limit_train_batches=trainer.limit_train_batches,
        check_val_every_n_epoch=STEPS + 1,
        num_sanity_val_steps=0,
        **QUIET,
        callbacks=[test, MemoryAdvice()],
    )
    log.info("--lr_find true: up to %d steps, from a learning rate of %g to %g", STEPS, LOWEST, HIGHEST)
    searching.fit(ViTClassifier(**said, optimizer=model._optimizer_factory), ImageDataModule(**data))
