"""Optimiser, schedule and the gradient of an accumulation window."""

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from vitcls.errors import UserError

log = logging.getLogger(__name__)

Schedule = Literal["cosine", "linear", "constant", "polynomial", "warmup_stable_decay"]
OptimizerFactory = Callable[[Iterable], Optimizer]
_ADDED = re.compile(
    r"(?:^|\.)(?:position_embeddings?(?:_\w+)?(?:\.weight)?|\w*relative_position_bias_table"
    r"|(?:cls|distillation|mask)_token|register_tokens)$"
)


# Of (IA)^3 and BOFT: matrices of one column that start at 1 and multiply outputs; decay would shrink the network.
FACTORS = {"ia3_l", "boft_s"}


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for each rate: those that decay, and those that do not.

    What does not: vectors and scalars (biases, norms), adapters' factors, and what is added to the tokens or to the
    attention and not multiplied with them, by transformers' names: position embeddings, tables of
    relative positions, class, distillation, mask and register tokens.

    Args:
        module: whose parameters.
        lr: peak learning rate.
        weight_decay: of the matrices.
        rates: peak learning rate of parameters by name, where it is another.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = (rates or {}).get(name, lr)
            for decays in (True, False):  # those that decay come first
                groups.setdefault((rate, decays), [])
            groups[rate, _decays(name, parameter)].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
        if parameters
    ]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not _ADDED.search(name) and not set(name.split(".")) & FACTORS


def build_optimizer(
    factory: OptimizerFactory | None, groups: list[dict[str, Any]], lr: float, weight_decay: float
) -> Optimizer:
    """AdamW, or the optimiser that the factory makes, on the groups' own rates and decays.

    Args:
        factory: of the user's optimiser.
        groups: of `parameter_groups`.
        lr: what the factory may repeat, as `model.lr`.
        weight_decay: what it may repeat, as `model.weight_decay`.

    Raises:
        UserError: the factory was given another rate or decay than the model, or makes an optimiser that does not
            take the groups or their rates.
    """
    if factory is None:
        return torch.optim.AdamW(groups)
    try:
        optimizer = factory(groups)
    except (TypeError, ValueError) as error:  # Muon takes matrices alone, LBFGS one group
        raise UserError(f"--model.optimizer cannot step this network: {' '.join(str(error).split())}") from error
    if optimizer.defaults.get("relative_step"):
        raise UserError(
            f"--model.optimizer {type(optimizer).__name__} makes learning rates of its own (relative_step), and "
            "--model.lr would do nothing; give it relative_step: false, or take torch.optim.Adafactor."
        )
    _check_one_owner(optimizer, "lr", "--model.lr", lr)
    _check_one_owner(optimizer, "weight_decay", "--model.weight_decay", weight_decay)
    return optimizer


def check_clipping(optimizer: Optimizer, clip: float | None, precision: str) -> None:
    """Refuse to clip gradients that the optimiser itself would unscale, which Lightning does in its first step.

    Args:
        optimizer: to step.
        clip: `trainer.gradient_clip_val`.
        precision: of the trainer.

    Raises:
        UserError: says what to leave out.
    """
    if clip and precision.endswith("mixed") and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            f"--trainer.gradient_clip_val {clip:g} cannot be had with fused: true of --model.optimizer and "
            f"--trainer.precision {precision}: a fused optimiser takes the gradients before they are clipped. Leave "
            "one of the three out; fused: false is the default."
        )


def check_same_groups(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a resume whose parameters are grouped otherwise: the optimiser's state would not fit them.

    Args:
        saved: `param_groups` of the checkpoint's optimiser.
        groups: of `parameter_groups`, now.

    Raises:
        UserError: says which options change the groups.
    """
    then, now = ([len(group["params"]) for group in some] for some in (saved, groups))
    if then != now:
        raise UserError(
            f"The interrupted training had its weights in {len(then)} groups of learning rate and weight decay "
            f"({then}), this one has {len(now)} ({now}), so the optimiser's state does not fit: resume with "
            "--model.layers, --model.head_lr, --model.layer_decay, --model.adapter.b_lr_ratio and "
            "--model.distill.features as they were, or start a new run from its weights."
        )


def name_of(optimizer: Optimizer) -> str:
    """The class path of an optimiser, by which a resume knows it again."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def check_same_optimizer(saved: str | None, optimizer: Optimizer) -> None:
    """Refuse a resume with another optimiser, to which the state of the former means nothing.

    Args:
        saved: `name_of` the checkpoint's; None where it tells none.
        optimizer: of now.

    Raises:
        UserError: names both.
    """
    if saved not in (None, name_of(optimizer)):
        raise UserError(
            f"The interrupted training stepped with {saved}, and this one would with {name_of(optimizer)}, to which "
            "its state means nothing: leave --model.optimizer as it was, or start a new run from its weights."
        )


def build_schedule(
    name: Schedule,
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    power: float = 2.0,
    decay_fraction: float = 0.2,
) -> LRScheduler:
    """Linear warm-up from 0, then the named decay to 0 at `total_steps` (or none, `constant`).

    Args:
        name: cosine is Loshchilov and Hutter 2016 (arXiv:1608.03983) without restarts; polynomial is
            (1 - p)**power of the share p of the decay that has passed; warmup_stable_decay holds the
            peak and falls at the end by 1 - sqrt(p) (Haegele et al. 2024, arXiv:2405.18392, section 3).
        optimizer: whose rates.
        warmup_steps: optimiser steps until the peak.
        total_steps: optimiser steps of the whole training.
        power: of polynomial.
        decay_fraction: of warmup_stable_decay: the share of all steps in which it falls, at most those
            that the warm-up leaves.
    """
    known = "constant_with_warmup" if name == "constant" else name
    kinds = {
        "polynomial": {"lr_end": 0.0, "power": power},
        "warmup_stable_decay": {
            "num_decay_steps": max(0, min(round(decay_fraction * total_steps), total_steps - warmup_steps)),
            "decay_type": "1-sqrt",
        },
    }
    last = max(total_steps, warmup_steps + 1)  # polynomial divides by the steps after the warm-up
    return get_scheduler(known, optimizer, warmup_steps, last, scheduler_specific_kwargs=kinds.get(name))


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
    """After a resume, put back the rate, the decay and what else the optimiser was configured with.

    A restored optimiser and schedule carry the ones of the interrupted run, which would silently
    beat what the user says now.
    """
    for group, configured in zip(optimizer.param_groups, groups, strict=True):
        ratio = configured["lr"] / group["initial_lr"]
        group["lr"] = group["lr"] * ratio
        group["initial_lr"] = configured["lr"]
        group |= {name: value for name, value in optimizer.defaults.items() if name not in ("lr", "weight_decay")}
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
