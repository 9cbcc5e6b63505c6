"""AdaLoRA in training: the ranks of the layers are shared out anew after each step, by how much each triplet matters.

Zhang et al. 2023 (arXiv:2303.10512) by peft's `AdaLoraModel`, which leaves four things to whoever owns the training:
how many steps there will be, the penalty, the call after each step, and what a resume needs.
"""

from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel
from torch import Tensor

# Shares of all steps: in the first all triplets train, in the last the ranks stay. The authors' scripts have 12 to 17 %
# and 44 to 52 % (RTE 600 and 1,800 of 3,900 steps, MRPC of 3,450; SST-2 6,000 and 22,000 of 50,500).
WARMUP_SHARE, FINAL_SHARE = 0.15, 0.45
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PLAN = ("total_step", "tinit", "tfinal", "rank_pattern")


def adaptive(network: Any) -> AdaLoraModel | None:
    """Peft's model where the adapter is AdaLoRA."""
    inside = getattr(network, "base_model", None)
    return inside if isinstance(inside, AdaLoraModel) else None


def plan_ranks(network: Any, steps: int) -> None:
    """Say how many optimiser steps the training has; of other networks nothing."""
    model = adaptive(network)
    if model is not None:
        config = _config_of(model)
        config.total_step = steps
        config.tfinal = min(max(1, round(FINAL_SHARE * steps)), steps - 1)
        config.tinit = min(round(WARMUP_SHARE * steps), steps - config.tfinal - 1)


def penalty(network: Any) -> Tensor | float:
    """What training adds to its loss: how far the singular vectors are from orthogonal (equation 4); () float.

    As peft computes it, in a forward that a plain PeftModel goes past (0.21): `orth_reg_weight` times the mean of the
    Frobenius norms of all matrices.
    """
    model = adaptive(network)
    if model is None:
        return 0.0
    distances = [
        torch.linalg.matrix_norm(covariance - torch.eye(len(covariance), device=covariance.device))
        for name, p in model.model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
        for covariance in [p @ p.T if ".lora_A." in name else p.T @ p]
    ]
    return _config_of(model).orth_reg_weight * torch.stack(distances).mean()


def share_out(network: Any, step: int) -> None:
    """After an optimiser step, while its gradients are there: weigh the triplets, mask those beyond the budget.

    Args:
        network: of any kind; nothing happens where its adapter is another.
        step: number of optimiser steps before this one.
    """
    model = adaptive(network)
    if model is None:
        return
    config, last = _config_of(model), _config_of(model).total_step - _config_of(model).tfinal
    if step < last and not _has_finite_gradients(model):
        return  # a step that the gradient scaler of 16-mixed has skipped
    if (step == last and not model.rankallocator.exp_avg_ipt) or (step > last and not config.rank_pattern):
        return  # nothing was weighed: the training is shorter than it was said to be
    model.update_and_allocate(step)


def state_of(network: Any) -> dict[str, Any]:
    """What a resume needs and no state_dict holds; empty where the adapter is another."""
    model = adaptive(network)
    if model is None:
        return {}
    importance = {name: dict(getattr(model.rankallocator, name)) for name in _IMPORTANCE}
    return {**importance, **{name: getattr(_config_of(model), name) for name in _PLAN}}


def restore(network: Any, state: dict[str, Any]) -> None:
    """Take over what `state_of` gave."""
    model = adaptive(network)
    if model is None or not state:
        return
    for name in _IMPORTANCE:
        setattr(model.rankallocator, name, dict(state[name]))
    for name in _PLAN:
        setattr(_config_of(model), name, state[name])


def move_importance(network: Any, device: torch.device) -> None:
    """To where the weights are."""
    model = adaptive(network)
    if model is not None:
        for name in _IMPORTANCE:
            kept = getattr(model.rankallocator, name)
            setattr(model.rankallocator, name, {key: tensor.to(device) for key, tensor in kept.items()})


def note_ranks(network: Any) -> None:
    """Before an export, by which peft leaves out what is masked: say which singular values are zero now.

    The pattern of the last step may be another: averaged weights have more, those of a step that was not the last too.
    """
    model = adaptive(network)
    if model is not None:
        values = {n: p for n, p in model.model.named_parameters() if ".lora_E." in n}
        pattern = {name: (p != 0).view(-1).tolist() for name, p in values.items()}
        _config_of(model).rank_pattern = pattern if any(map(any, pattern.values())) else None


def _config_of(model: AdaLoraModel) -> AdaLoraConfig:
    return model.peft_config[model.trainable_adapter_name]


def _has_finite_gradients(model: AdaLoraModel) -> bool:
    gradients = [p.grad for name, p in model.model.named_parameters() if ".lora_" in name and p.requires_grad]
    return all(g is not None and bool(g.isfinite().all()) for g in gradients)
