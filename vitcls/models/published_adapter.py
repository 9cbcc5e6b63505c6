"""An adapter of peft as a checkpoint: where it is, of which base, with which classes, under whose names."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import load_peft_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils.peft_utils import find_adapter_config_file

from vitcls.errors import UserError, listing
from vitcls.models.peft_methods import METHODS

PREFIX = "base_model.model."  # of all names in an adapter's file
_KINDS = {method.config for method in METHODS.values()}
# First values that the file's replace entirely, and those that are taken out of the base by an exact computation.
# Of the others (pissa_niter_*, corda, loftq) the base that they leave behind cannot be had again.
REPLACED_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_SPLITTING_STARTS = ("pissa", "olora")


@dataclass(frozen=True)
class PublishedAdapter:
    """An adapter in a folder or on the Hub.

    Attributes:
        place: folder or Hub id.
        revision: of the Hub repository.
        config: of peft; says the base.
    """

    place: str
    revision: str | None
    config: PeftConfig

    @property
    def base(self) -> tuple[str, str | None]:
        """The base's folder or Hub id, and its revision."""
        return str(self.config.base_model_name_or_path), self.config.revision

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by the names in its file; nothing is unpickled.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        try:
            return load_peft_weights(self.place, device="cpu", revision=self.revision)
        except Exception as error:  # of safetensors, pickle, zip files, the Hub
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(f"The weights of the adapter {self.place!r} cannot be read ({reason}).") from error


def find_adapter(place: str, revision: str | None = None) -> PublishedAdapter | None:
    """The adapter that a checkpoint is; None where it is none.

    Args:
        place: folder or Hub id.
        revision: of the Hub repository.

    Raises:
        UserError: it does not say its base, or is of a kind that has no place here.
    """
    if find_adapter_config_file(place, revision=revision) is None:
        return None
    try:
        config = PeftConfig.from_pretrained(place, revision=revision)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The adapter_config.json of {place!r} cannot be read ({error}).") from error
    if not config.base_model_name_or_path:
        raise UserError(
            f"The adapter {place!r} does not say what it is an adapter of; write the base's Hub id or folder into its "
            "adapter_config.json, as base_model_name_or_path."
        )
    if type(config) not in _KINDS:
        raise UserError(
            f"The adapter {place!r} is of peft's {type(config).__name__}, which is none of those that can be read: "
            f"{listing(sorted(kind.__name__ for kind in _KINDS), 20)}."
        )
    start = getattr(config, "init_lora_weights", True)
    if start not in (*REPLACED_STARTS, *_SPLITTING_STARTS):
        raise UserError(
            f"The adapter {place!r} was trained on what its init_lora_weights {start!r} left of the base, which cannot "
            "be had again; convert it to plain LoRA with peft, or give the merged network."
        )
    return PublishedAdapter(place, revision, config)


def config_with_adapter(adapter: PublishedAdapter, config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the base with the adapter's classes.

    Their number is that of the adapter's head, or of the base's where it has none; their names are those of a
    config.json beside the adapter, if there is one.

    Raises:
        UserError: that file has names for another number of classes.
    """
    with torch.device("meta"):
        network = AutoModelForImageClassification.from_config(config)
    tensors = adapter.tensors()
    names = todays_names(network, tensors)
    own = set(network.state_dict())
    heads = [tensors[PREFIX + k] for k, name in names.items() if name in own and is_of_head(network, name)]
    count = len(heads[0]) if heads else len(config.id2label)
    try:
        named = AutoConfig.from_pretrained(adapter.place, revision=adapter.revision, trust_remote_code=False).id2label
    except (OSError, ValueError):
        named = {} if heads else config.id2label
    if named and len(named) != count:
        raise UserError(
            f"The adapter {adapter.place!r} has {count} classes, but its config.json names {len(named)}; correct the "
            "file, or delete it and name the classes with --model.labels."
        )
    config.id2label = named or {i: f"LABEL_{i}" for i in range(count)}
    config.label2id = {name: i for i, name in config.id2label.items()}
    return config


def todays_names(network: Any, keys: Iterable[str]) -> dict[str, str]:
    """Of each key of a file that names a place in the network: today's name; transformers' own renaming."""
    renamings = [each for each in get_model_conversion_mapping(network) if isinstance(each, WeightRenaming)]
    own = [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX) and ".original_module." not in key]
    return {key: rename_source_key(key, renamings, [])[0] for key in own}


def is_of_head(network: Any, name: str) -> bool:
    """Whether a parameter, by its name, is on top of the backbone."""
    return not name.startswith(f"{network.base_model_prefix}.")


def misfit(adapter: PublishedAdapter, reason: str) -> UserError:
    """Says that an adapter is not one of its base."""
    return UserError(
        f"The adapter {adapter.place!r} does not fit the base that its adapter_config.json names, {adapter.base[0]!r}: "
        f"{reason}."
    )
