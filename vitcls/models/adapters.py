"""Adapters: LoRA and the other methods of peft, and the names that their targets go by."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from peft import PeftModel, get_peft_model
from torch import nn

from vitcls.errors import UserError, check_range, listing, suggestion
from vitcls.models.peft_methods import METHODS, MethodName, config_of, quiet_peft

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
# What holds for every transformer here; of a network that lacks some of a name's layers, the others are meant.
ALIASES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qv": ("q_proj", "v_proj"),
    "mlp": ("fc1", "fc2", "pwconv1", "pwconv2", "gate_proj", "up_proj", "down_proj"),  # also ConvNeXt's, and SwiGLU's
}
ALL_LINEAR = "all-linear"
# The layers that hold almost all weights and that peft can wrap.
_ADAPTABLE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
# Linear layers of ConvNeXt that take (B, H, W, C); peft 0.21's OFT takes whatever has four dimensions for (B, C, H, W).
_OF_IMAGES = ("pwconv1", "pwconv2")


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) or their kin; the head is always trained with them.

    Attributes:
        r: rank; lora, rslora, dora, pissa, olora, loha, lokr, vera (whose paper takes 256); adalora: the mean over the
            layers in the end; it starts with one and a half times as much.
        alpha: scale; the update is multiplied by alpha / r (rslora: by alpha / sqrt(r); adalora: by alpha / its first
            rank). As r, but not vera.
        dropout: on the adapters' input, in 0..1; oft and boft: share of their blocks left out. At 0 training is
            about 12 % faster. Not loha, lokr, ia3, ln_tuning, fourierft.
        targets: layers to adapt, by today's names (q_proj, fc1, ...), the published ones (query, key, value,
            dense, ...) or what they do: `attention`, `qv`, `mlp`, `all-linear`. ln_tuning: the names of norms; not
            given: all.
        bias: which biases train: `none`, `all`, or those of the adapted layers (`lora_only`). Not loha, lokr, ia3,
            ln_tuning; oft, boft, vera and fourierft have `none` and `all`.
        method: of adapting.
        block_size: side of the rotations of oft (32 where not given) and boft (4); divides the layers' inputs.
        frequencies: of fourierft: learned coefficients of each layer (1000 where not given).
        b_lr_ratio: of lora, rslora, dora, olora: learning rate of the matrices B over that of A, at least 1. LoRA+
            (Hayou et al. 2024, arXiv:2402.12354, section 5) takes 16, and a lower `model.lr` than with 1.
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.1
    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    bias: Literal["none", "all", "lora_only"] = "none"
    method: MethodName = "lora"
    block_size: int | None = None
    frequencies: int | None = None
    b_lr_ratio: float = 1.0


def add_lora(network: Any, lora: LoRA, head: list[str], revision: str | None = None) -> PeftModel:
    """Freeze the network, put adapters on its targets, keep the head trainable and saved.

    Args:
        network: a transformers image classifier.
        lora: what to add.
        head: names of the head's modules.
        revision: of the network's Hub repository, for those who load the adapter.

    Raises:
        UserError: a target matches no layer, or none that the method can wrap; a value is out of its range, or of
            a field that the method does not have.
    """
    _check_values(lora)
    targets = _targets_of_method(network, lora, head)
    config = config_of(lora.method, asdict(lora), targets, head)
    try:
        with quiet_peft():
            return get_peft_model(network, config, revision=revision)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:  # what does not fit the layers' sizes
        raise UserError(
            f"--model.adapter.method {lora.method} does not fit the layers {listing(targets)} "
            f"(--model.adapter.targets): {' '.join(str(error).split())}"
        ) from error


def _check_values(lora: LoRA) -> None:
    if lora.method not in METHODS:
        raise UserError(
            f"--model.adapter.method is {lora.method!r}{suggestion(str(lora.method), METHODS)}; it must be one of "
            f"{listing(METHODS, 20)}."
        )
    has = METHODS[lora.method].fields
    defaults = LoRA()
    for name in (f.name for f in fields(LoRA) if f.name not in ("method", "targets", "b_lr_ratio", *has)):
        if getattr(lora, name) != getattr(defaults, name):
            raise UserError(
                f"--model.adapter.{name} is {getattr(lora, name)!r}, but the method {lora.method} has no {name}: "
                f"leave it out. What it has: {listing(['targets', *has])}."
            )
    check_range("model.adapter.r", lora.r, lora.r >= 1, "at least 1")
    check_range("model.adapter.dropout", lora.dropout, 0 <= lora.dropout < 1, "at least 0 and below 1")
    for name in ("block_size", "frequencies"):
        value = getattr(lora, name)
        check_range(f"model.adapter.{name}", value, value is None or value >= 1, "at least 1")
    check_range("model.adapter.b_lr_ratio", lora.b_lr_ratio, lora.b_lr_ratio >= 1, "at least 1")
    if lora.b_lr_ratio != 1 and METHODS[lora.method].config is not METHODS["lora"].config:
        raise UserError(
            f"--model.adapter.b_lr_ratio is {lora.b_lr_ratio:g}, but the method {lora.method} has no matrices A and B; "
            "leave it out."
        )
    if lora.bias == "lora_only" and METHODS[lora.method].config is not METHODS["lora"].config:
        raise UserError(f"--model.adapter.bias is 'lora_only', but the method {lora.method} has 'none' and 'all' only.")


def _targets_of_method(network: nn.Module, lora: LoRA, head: list[str]) -> list[str]:
    """Names of the layers to wrap, all of which the method can wrap."""
    method = METHODS[lora.method]
    if nn.LayerNorm in method.layers:
        norms = [n for n, m in network.named_modules() if isinstance(m, nn.LayerNorm) and not _below(n, head)]
        if not norms:
            others = [name for name, other in METHODS.items() if nn.Conv2d in other.layers]
            raise UserError(
                f"--model.adapter.method {lora.method} trains layer norms, and this network has none; what would "
                f"do: {listing(others)}."
            )
        return norms if lora.targets == LoRA().targets else resolve_targets(network, lora.targets, head, method.layers)
    targets = resolve_targets(network, lora.targets, head)
    for name, layer in network.named_modules():
        if isinstance(layer, _ADAPTABLE) and not _below(name, head) and any(_matches(name, t) for t in targets):
            _check_layer(lora, name, layer)
    return targets


def _check_layer(lora: LoRA, name: str, layer: Any) -> None:
    method = METHODS[lora.method]
    takes_no_images = lora.method == "oft" and name.rsplit(".", 1)[-1] in _OF_IMAGES
    wraps = isinstance(layer, method.layers)
    if takes_no_images or not wraps:
        kind = type(layer).__name__
        others = [o for o, m in METHODS.items() if isinstance(layer, m.layers) and not (takes_no_images and o == "oft")]
        raise UserError(
            f"--model.adapter.method {lora.method} cannot wrap {name!r} ({kind}{' of images' * takes_no_images}); give "
            f"other --model.adapter.targets, or a method that can: {listing(others, 20)}."
        )
    if lora.method in ("olora", "pissa") and lora.r > min(layer.weight.shape):
        raise UserError(
            f"--model.adapter.r is {lora.r}, but {lora.method} takes its first values out of {name!r}, whose rank is "
            f"at most {min(layer.weight.shape)}."
        )
    if method.divides:
        size = lora.block_size or getattr(method.config(), next(iter(method.fields.values())))
        inputs = layer.in_features
        if inputs % size:
            raise UserError(
                f"--model.adapter.block_size is {size}, which does not divide the {inputs} inputs of {name!r}; give "
                f"a divisor of {inputs}."
            )


def resolve_targets(
    network: nn.Module, targets: Iterable[str], head: list[str], kinds: tuple[type[nn.Module], ...] = _ADAPTABLE
) -> list[str]:
    """Today's names of the layers that the targets mean, in the network's own vocabulary.

    Args:
        network: a transformers image classifier.
        targets: names, published names or aliases.
        head: names of the head's modules, which are no targets.
        kinds: of layers that can be meant.

    Raises:
        UserError: a target matches no layer.
    """
    layers = [n for n, m in network.named_modules() if isinstance(m, kinds) and not _below(n, head)]
    resolved: list[str] = []
    for target in targets:
        meant = (target, *PUBLISHED_NAMES.get(target, ()), *ALIASES.get(target, ()))
        names = [n for n in meant if any(_matches(x, n) for x in layers)]
        if target == ALL_LINEAR:
            names = _linear_names(network, head)
        if not names:
            raise _no_such_target(target, layers)
        resolved += [n for n in names if n not in resolved]
    return resolved


def _linear_names(network: nn.Module, head: list[str]) -> list[str]:
    """Last names of all linear layers; whole names where another layer has the same last name."""
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and not _below(n, head)]
    others = [n for n, _ in network.named_modules() if n not in linear]
    names = []
    for name in linear:
        leaf = name.rsplit(".", 1)[-1]
        names.append(name if any(_matches(other, leaf) for other in others) else leaf)
    return list(dict.fromkeys(names))


def _matches(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")  # peft's own rule for a list of names


def _below(name: str, heads: list[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _no_such_target(target: str, layers: list[str]) -> UserError:
    leaves = sorted({layer.rsplit(".", 1)[-1] for layer in layers} - {""})
    named = [leaf for leaf in leaves if not re.fullmatch(r"\d+", leaf)]
    published = [n for n, today in PUBLISHED_NAMES.items() if set(today) & set(named)]
    also = f" (or, as published: {listing(published)})" if published else ""
    aliases = [n for n, today in ALIASES.items() if set(today) & set(named)]
    also += f" (or, for several: {listing([*aliases, ALL_LINEAR])})" if aliases else ""
    return UserError(
        f"The adapter target {target!r} (--model.adapter.targets) matches no layer of this network"
        f"{suggestion(target, [*named, *published, *aliases])}. What would: {listing(named)}{also}."
    )
