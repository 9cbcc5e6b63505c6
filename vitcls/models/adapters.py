"""LoRA, and the names that its targets go by."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from vitcls.errors import UserError, check_range, listing, suggestion

# Published guides name modules as transformers 4 did; today's ViT, DeiT, BEiT, Swin and DINOv2
# have q_proj, k_proj, v_proj, o_proj, fc1 and fc2. `dense` was the name of three layers.
PUBLISHED_NAMES = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "dense": ("o_proj", "fc1", "fc2"),
    "attention.output.dense": ("o_proj",),
    "intermediate.dense": ("fc1",),
    "output.dense": ("fc2",),
}
# The layers that hold almost all weights and that peft can wrap.
_ADAPTABLE = (nn.Linear, nn.Conv2d)


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685); the head is always trained with them.

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: on the adapters' input, in 0..1. At 0 training is about 12 % faster.
        targets: layers to adapt, by today's names (q_proj, fc1, ...) or the published ones (query,
            key, value, dense, ...).
        bias: which biases train: `none`, `all`, or those of the adapted layers (`lora_only`).
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.1
    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    bias: Literal["none", "all", "lora_only"] = "none"


def add_lora(network: Any, lora: LoRA, head: list[str], revision: str | None = None) -> PeftModel:
    """Freeze the network, put adapters on its targets, keep the head trainable and saved.

    Args:
        network: a transformers image classifier.
        lora: what to add.
        head: names of the head's modules.
        revision: of the network's Hub repository, for those who load the adapter.

    Raises:
        UserError: a target matches no layer, or r is not positive; lists the layers that there are.
    """
    check_range("model.adapter.r", lora.r, lora.r >= 1, "at least 1")
    check_range("model.adapter.dropout", lora.dropout, 0 <= lora.dropout < 1, "at least 0 and below 1")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=resolve_targets(network, lora.targets, head),
        bias=lora.bias,
        modules_to_save=head,
    )
    return get_peft_model(network, config, revision=revision)


def resolve_targets(network: nn.Module, targets: Iterable[str], head: list[str]) -> list[str]:
    """Today's names of the layers that the targets mean, in the network's own vocabulary.

    Raises:
        UserError: a target matches no layer.
    """
    layers = [n for n, m in network.named_modules() if isinstance(m, _ADAPTABLE) and not _below(n, head)]
    resolved: list[str] = []
    for target in targets:
        names = [n for n in (target, *PUBLISHED_NAMES.get(target, ())) if any(_matches(x, n) for x in layers)]
        if not names:
            raise _no_such_target(target, layers)
        resolved += [n for n in names if n not in resolved]
    return resolved


def _matches(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")  # peft's own rule for a list of names


def _below(name: str, heads: list[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _no_such_target(target: str, layers: list[str]) -> UserError:
    leaves = sorted({layer.rsplit(".", 1)[-1] for layer in layers} - {""})
    named = [leaf for leaf in leaves if not re.fullmatch(r"\d+", leaf)]
    published = [n for n, today in PUBLISHED_NAMES.items() if set(today) & set(named)]
    also = f" (or, as published: {listing(published)})" if published else ""
    return UserError(
        f"The adapter target {target!r} (--model.adapter.targets) matches no layer of this network"
        f"{suggestion(target, [*named, *published])}. What would: {listing(named)}{also}."
    )
