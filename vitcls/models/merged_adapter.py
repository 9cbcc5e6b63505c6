"""An adapter merged into its base: the plain network that both make together."""

import hashlib
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.other import get_pattern_key
from torch import Tensor

from vitcls.errors import UserError, listing
from vitcls.models.peft_methods import can_merge, quiet_peft
from vitcls.models.published_adapter import (
    PREFIX,
    REPLACED_STARTS,
    PublishedAdapter,
    is_of_head,
    misfit,
    todays_names,
)


@dataclass(frozen=True)
class Merged:
    """What a network remembers of the adapter that was merged into it.

    Attributes:
        digest: of the adapter.
        layers: names of the layers that it changed; the last bits of their weights differ between processors.
    """

    digest: str
    layers: frozenset[str]

    def changed(self, parameter: str) -> bool:
        """Whether a parameter, by its name in the network or below another adapter, is of such a layer."""
        return parameter.removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")[0] in self.layers


def merge_adapter(network: Any, adapter: PublishedAdapter, keeps_head: bool) -> set[str]:
    """Merge an adapter into its base, and put its head on top.

    Args:
        network: the base, a transformers image classifier; changed in place.
        adapter: what to merge.
        keeps_head: not: the head stays as it is.

    Returns:
        names of the parameters of the head that the adapter has brought.

    Raises:
        UserError: a weight has no place in the network, one is missing, or shapes differ.
    """
    tensors = adapter.tensors()
    direct, wrapped = _sorted_out(network, adapter, tensors)
    head = {name for name in direct if is_of_head(network, name)}
    if not keeps_head:
        direct = {name: tensor for name, tensor in direct.items() if name not in head}
        wrapped = [each for each in wrapped if not is_of_head(network, each.layer)]
    _copy(network, adapter, direct)
    if wrapped:
        shared = {key: tensor for key, tensor in tensors.items() if not key.startswith(PREFIX)}  # VeRA's projections
        _merge(network, adapter, wrapped, shared)
    layers = frozenset(each.layer for each in wrapped)
    network.merged = Merged(_digest(adapter, tensors), layers)
    return head if keeps_head else set()


def check_can_go_on_top(network: PeftModel) -> None:
    """Refuse an adapter on a merged one that could not be merged in turn, as `model/` would have no base.

    Raises:
        UserError: it cannot be merged.
    """
    if hasattr(network, "merged") and not can_merge(network):
        raise UserError(
            "--model.checkpoint is an adapter, and what trains on top of it must be merged to be kept in model/, which "
            "peft cannot do with this --model.adapter.method and --model.adapter.targets; give other ones, or "
            "--model.adapter null."
        )


@dataclass(frozen=True)
class _OfLayer:
    """A tensor of the adapter on a layer: the layer's names of today and in the file, and what follows the name."""

    layer: str
    published: str
    suffix: str
    tensor: Tensor


def _sorted_out(
    network: Any, adapter: PublishedAdapter, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[_OfLayer]]:
    """Weights that replace the network's own (head, biases), by name; and those of adapted layers."""
    own, modules = set(network.state_dict()), dict(network.named_modules())
    direct, wrapped, unplaced = {}, [], []
    for key, name in todays_names(network, tensors).items():
        tensor = tensors[PREFIX + key]
        inside = re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)  # as peft keeps biases
        layer = _layer_of(name, modules)
        if inside in own:
            direct[inside] = tensor
        elif layer is None or any(modules[layer].children()):
            unplaced.append(key)
        else:
            suffix = name.removeprefix(layer)
            wrapped.append(_OfLayer(layer, key.removesuffix(suffix), suffix, tensor))
    if unplaced or not (direct or wrapped):
        raise misfit(adapter, f"it has no place for {listing(unplaced, 3)}" if unplaced else "the file has no weights")
    return direct, wrapped


def _layer_of(name: str, modules: dict[str, Any]) -> str | None:
    """The longest beginning of a name that is a module."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _copy(network: Any, adapter: PublishedAdapter, tensors: dict[str, Tensor]) -> None:
    state = network.state_dict()
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            raise misfit(adapter, f"{name} is {tuple(state[name].shape)}, the adapter's {tuple(tensor.shape)}")
        state[name].copy_(tensor)


def _merge(network: Any, adapter: PublishedAdapter, wrapped: list[_OfLayer], shared: dict[str, Tensor]) -> None:
    """Put the adapter on exactly the layers that it has weights for, and merge it."""
    trains = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    tensors = {f"{PREFIX}{each.layer}{each.suffix}": each.tensor for each in wrapped} | shared
    config = _config_for(adapter.config, {each.layer: each.published for each in wrapped})
    try:
        with quiet_peft():
            adapted = get_peft_model(network, config)
            missing = sorted(set(get_peft_model_state_dict(adapted)) - set(tensors))
            unplaced = set_peft_model_state_dict(adapted, tensors).unexpected_keys
            if missing or unplaced:
                raise misfit(adapter, f"weights without their counterpart are {listing([*missing, *unplaced], 3)}")
            adapted.merge_and_unload(safe_merge=True)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:  # whatever does not fit
        raise misfit(adapter, " ".join(str(error).split())[:300].rstrip(".")) from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains[name])


def _config_for(published: PeftConfig, layers: dict[str, str]) -> PeftConfig:
    """The configuration with layers (today's name -> published name) in place of the words that chose them."""
    config: Any = deepcopy(published)
    words: dict[str, Any] = {"target_modules": list(layers), "modules_to_save": None, "exclude_modules": None}
    words |= {
        "bias": "none",
        "layers_to_transform": None,
        "layers_pattern": None,
        "task_type": None,
        "inference_mode": False,
    }
    if getattr(config, "init_lora_weights", None) in REPLACED_STARTS:
        words["init_lora_weights"] = True
    for pattern in ("rank_pattern", "alpha_pattern"):
        words[pattern] = _by_layer(getattr(config, pattern, None) or {}, layers)
    if isinstance(config, AdaLoraConfig) and config.rank_pattern:
        words["rank_pattern"] = {f"{name}.lora_E": config.rank_pattern[f"{old}.lora_E"] for name, old in layers.items()}
    inner = getattr(config, "feedforward_modules", None) or []
    words["feedforward_modules"] = [name for name, old in layers.items() if _is_chosen(inner, old)]
    for word in (word for word in words if hasattr(config, word)):
        setattr(config, word, words[word])
    return config


def _by_layer(pattern: dict[str, Any], layers: dict[str, str]) -> dict[str, Any]:
    """The values of a pattern of published names, by today's name of each layer that it is for."""
    keys = {name: get_pattern_key(list(pattern), published) for name, published in layers.items()}
    return {re.escape(name): pattern[key] for name, key in keys.items() if key in pattern}


def _is_chosen(words: str | Iterable[str], published: str) -> bool:
    """Whether feedforward_modules, an expression or ends of names, choose a layer; peft's own rule."""
    if isinstance(words, str):
        return re.fullmatch(words, published) is not None
    return any(published.endswith(word) for word in words)


def _digest(adapter: PublishedAdapter, tensors: dict[str, Tensor]) -> str:
    scale = getattr(adapter.config, "lora_alpha", getattr(adapter.config, "alpha", None))
    digest = hashlib.sha256(str(scale).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
