"""Optimiser steps that would spoil the weights: a loss or gradient that is NaN or infinite."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vitcls.callbacks.checkpoint import RunCheckpoint
from vitcls.callbacks.interrupt import window_ends
from vitcls.errors import UserError, listing
from vitcls.processes import of_all_processes
from vitcls.types import Batch

log = logging.getLogger(__name__)


class BadSteps(Callback):
    """Ends the training before a step whose loss or gradient is not finite, or leaves up to `model.max_bad_steps` out.

    No weight ever takes such a step, so checkpoints stay good. Steps that are left out are counted in
    `train/bad_steps`; the learning rate's schedule goes on over them. With `trainer.precision 16-mixed` a gradient
    that is not finite is ordinary: Lightning's scaler leaves the step out and lowers its scale. These are counted in
    `train/skipped_steps`, and the loss alone is judged here.

    It costs one look at the gradients and one wait for the device in each optimiser step, after backward. Lightning's
    progress bar waits for the loss of each batch anyway.
    """

    def __init__(self) -> None:
        self._window: list[tuple[Tensor, Tensor]] = []  # ids and loss of each batch
        self._left_out = 0  # steps, in the whole training
        self._is_bad = False
        self._scale = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty window and the scale of now."""
        self._window, self._is_bad, self._scale = [], False, _scale(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Note which images the batch has."""
        self._window.append((batch["ids"], torch.zeros(())))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note its loss, without waiting for it."""
        self._window[-1] = (self._window[-1][0], loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave the step out, or end the training.

        Raises:
            UserError: names the step, the images and the last checkpoint.
        """
        window, self._window = self._window, []
        finite = torch.stack([loss for _, loss in window]).isfinite().all()
        if not _scale(trainer):
            finite = finite & _norm(optimizer).isfinite()
        self._is_bad = trainer.strategy.reduce_boolean_decision(not bool(finite), all=False)
        if not self._is_bad:
            return
        told = _told(_batches(window, trainer.world_size), trainer.global_step + 1)
        self._left_out += 1
        most = pl_module.hparams["max_bad_steps"]
        if self._left_out > most:
            raise UserError(_sentence(told, most, trainer))
        log.warning("%s: the step is left out (%d of at most %d)", told, self._left_out, most)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # the optimiser leaves a weight without one as it is

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the steps that were left out, where any can be."""
        if not window_ends(trainer, batch_idx):
            return
        if pl_module.hparams["max_bad_steps"]:
            _count(pl_module, "train/bad_steps", self._is_bad)
        scale = _scale(trainer)
        if scale:
            _count(pl_module, "train/skipped_steps", scale < self._scale)
        self._scale, self._is_bad = scale, False

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"left_out": self._left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._left_out = state_dict["left_out"]


def _norm(optimizer: Optimizer) -> Tensor:
    """The gradients' Euclidean norm, () float; 0 where they are float16, in which it would overflow at 65,504.

    Of 87 million weights 30 ms on one core; the largest element, which cannot overflow, took 600.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return get_total_norm([g for g in gradients if g.dtype != torch.float16])


def _scale(trainer: Any) -> float:
    """By which factor the loss is scaled for float16; 0 where it is not. It falls with each step that is left out."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler.get_scale() if scaler is not None and scaler.is_enabled() else 0.0


def _count(pl_module: LightningModule, name: str, happened: bool) -> None:
    share = float(happened) / pl_module.trainer.world_size  # it happens to all processes at once
    pl_module.log(name, share, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True, batch_size=1)


def _batches(window: list[tuple[Tensor, Tensor]], processes: int) -> list[tuple[list[int], float]]:
    """Ids and loss of each batch, of all processes."""
    own = [(ids.tolist(), loss.item()) for ids, loss in window]
    return [batch for batches in of_all_processes(own, processes) for batch in batches]


def _told(batches: list[tuple[list[int], float]], step: int) -> str:
    """What is not finite, and the images: of the batches whose loss is not, or else of all."""
    bad = [(ids, loss) for ids, loss in batches if not math.isfinite(loss)]
    what = f"The loss is {bad[0][1]}" if bad else "The gradient is not finite"
    rows = [str(row) for ids, _ in bad or batches for row in ids]
    return f"{what} in step {step}, with the training images of ids {listing(rows, 40)}"


def _sentence(told: str, most: int, trainer: Any) -> str:
    saved = next((c.last_saved() for c in trainer.callbacks if isinstance(c, RunCheckpoint)), None)
    return (
        f"The training diverged: {told[0].lower()}{told[1:]}. Lower --model.lr, lengthen the warm-up or clip gradients "
        f"(--trainer.gradient_clip_val 1.0), or look at these images; --model.max_bad_steps (now {most}) leaves some "
        f"such steps out. {f'The last checkpoint is {saved}' if saved else 'No checkpoint has been saved yet'}."
    )
