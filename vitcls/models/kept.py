"""What a checkpoint keeps of a network whose frozen weights can be had again: the trained part."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcls.checkpoints import RECORD
from vitcls.errors import UserError, listing
from vitcls.models.merged_adapter import Merged
from vitcls.models.peft_methods import is_split

POSITIONS = ".position_embeddings"


def trains_part(said: Mapping[str, Any]) -> bool:
    """Whether a part of the weights was chosen to train, and the others stay frozen for the whole training.

    Args:
        said: hyper-parameters of a ViTClassifier.
    """
    return said["adapter"] is not None or said["train"] != "all" or said["last_blocks"] is not None


def trained_part(module: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state_dict that training changes."""
    trained = _trained_names(module)
    return {name: value for name, value in state_dict.items() if name in trained}


def check_trained_part(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Refuse a state_dict that lacks something that was trained.

    Raises:
        UserError: names what is missing.
    """
    missing = sorted(_trained_names(module) - set(state_dict))
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} trained weights: {listing(missing, 3)}.")


def check_frozen_part(content: dict[str, Any], digest: str, checkpoint: str | None) -> None:
    """Refuse a trained part that was trained on top of other frozen weights.

    Args:
        content: of a .ckpt file.
        digest: of the frozen weights at hand, from `frozen_digest`; empty where all are kept.
        checkpoint: where those came from, for the message.

    Raises:
        UserError: the file is not of vitcls, or the frozen weights differ.
    """
    if RECORD not in content:
        raise UserError("The checkpoint was not written by vitcls; give a run folder or a .ckpt of one.")
    if content[RECORD]["frozen_digest"] != digest:
        raise UserError(
            f"The weights of --model.checkpoint {checkpoint!r} are not those that this run was trained on, or others "
            "of them train now, so its trained part does not fit; give the original checkpoint, and --model.adapter, "
            "--model.train and --model.last_blocks as they were."
        )


def frozen_digest(network: nn.Module) -> str:
    """A digest of the frozen weights: what a checkpoint without them was trained on top of.

    Without what was computed from the pretrained weights (position embeddings that were interpolated, weights that
    OLoRA has split, layers into which an adapter was merged, which is digested itself): their last bits differ between
    processors.
    """
    digest = hashlib.sha256()
    split = is_split(network)
    resized = hasattr(network, "pretrained_image_size")
    merged: Merged | None = getattr(network, "merged", None)
    if merged is not None:
        digest.update(merged.digest.encode())
    for name, parameter in sorted(network.named_parameters()):
        # peft keeps the untrained head aside as `original_module`; it is random and never used.
        if (
            not parameter.requires_grad
            and ".original_module." not in name
            and not (resized and name.endswith(POSITIONS))
            and not (split and name.endswith(".base_layer.weight"))
            and not (merged is not None and merged.changed(name))
        ):
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
