"""Optimiser, schedule and the gradient of an accumulation window."""

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from vitcls.errors import UserError

log = logging.getLogger(__name__)

Schedule = Literal["cosine", "linear", "constant"]
OptimizerFactory = Callable[[Iterable], Optimizer]


# Of (IA)^3 and BOFT: matrices of one column that start at 1 and multiply outputs; decay would shrink the network.
FACTORS = {"ia3_l", "boft_s"}


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups; vectors, scalars (biases, norms) and adapters' factors do not decay.

    Args:
        module: whose parameters.
        lr: peak learning rate of both groups.
        weight_decay: of the matrices.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in trainable if p.ndim > 1 and not set(n.split(".")) & FACTORS]
    vectors = [p for n, p in trainable if p.ndim <= 1 or set(n.split(".")) & FACTORS]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: OptimizerFactory | None, groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW, or the optimiser that the factory makes, on the groups' own rate and decay.

    Raises:
        UserError: the factory was given another rate or decay than the model.
    """
    if factory is None:
        return torch.optim.AdamW(groups)
    optimizer = factory(groups)
    for name, option in (("lr", "--model.lr"), ("weight_decay", "--model.weight_decay")):
        _check_one_owner(optimizer, name, option, groups[0][name])
    return optimizer


def build_schedule(name: Schedule, optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear warm-up from 0, then the named decay to 0 at `total_steps` (or none, `constant`).

    Args:
        name: cosine is Loshchilov and Hutter 2016 (arXiv:1608.03983) without restarts.
        optimizer: whose rates.
        warmup_steps: optimiser steps until the peak.
        total_steps: optimiser steps of the whole training.
    """
    known = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(known, optimizer, warmup_steps, total_steps)


def warmup_steps(total_steps: int, steps: int | None, fraction: float) -> int:
    """Optimiser steps of warm-up: those said, or a share of all.

    Warns where the warm-up is as long as the training: the rate would never reach its peak.
    """
    if steps is None:
        return round(fraction * total_steps)
    if steps >= total_steps:
        log.warning(
            "--model.warmup_steps %d is not below the %d optimiser steps of this training: the learning "
            "rate never reaches --model.lr",
            steps,
            total_steps,
        )
    return steps


def keep_configured_rates(optimizer: Optimizer, scheduler: LRScheduler, groups: list[dict[str, Any]]) -> None:
    """After a resume, put back the rate and decay that this run was configured with.

    A restored optimiser and schedule carry the ones of the interrupted run, which would silently
    beat what the user says now.
    """
    for group, configured in zip(optimizer.param_groups, groups, strict=True):
        ratio = configured["lr"] / group["initial_lr"]
        group["lr"] = group["lr"] * ratio
        group["initial_lr"] = configured["lr"]
        group["weight_decay"] = configured["weight_decay"]
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


class AccumulationWindow:
    """Makes an accumulated gradient the mean over the window's images, however it is cut.

    Lightning divides each batch's loss by the full `accumulate_grad_batches`, also in a last window
    that has fewer batches, and weighs a short batch like a whole one. Here each loss is weighed by
    its images, and before the step the gradient is scaled from the full window to the true one.
    """

    def __init__(self, nominal_batch: int) -> None:
        self._nominal = nominal_batch
        self.images = 0

    def weigh(self, loss: Tensor, images: int) -> Tensor:
        """A batch's mean loss -> what goes into backward."""
        self.images += images
        return loss * (images / self._nominal)

    def close(self, parameters: Iterable[nn.Parameter], accumulated: int, images: float) -> None:
        """End the window: scale its gradients from a full window's to the mean over its images.

        Args:
            parameters: whose gradients.
            accumulated: batches that Lightning divides by.
            images: in the window, mean over the processes, since DDP averages gradients.
        """
        self.images = 0
        factor = accumulated * self._nominal / images if images else 1.0
        if factor == 1.0:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def _check_one_owner(optimizer: Optimizer, name: str, option: str, configured: float) -> None:
    declared = inspect.signature(type(optimizer)).parameters.get(name)
    given = optimizer.defaults.get(name)
    if declared is None or given is None or given in (declared.default, configured):
        return
    raise UserError(
        f"--model.optimizer sets {name} to {given}, but the model's is {configured}: {option} is the one place for it."
    )
