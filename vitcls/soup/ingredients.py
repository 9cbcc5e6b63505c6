"""The classifiers that a soup may be made of: whole weights of one network, read from checkpoints."""

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor

from vitcls.checkpoints import Checkpoint, arguments_of, read_checkpoint
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.models.network import batch_norms
from vitcls.models.peft_methods import can_merge

# What must be the same for a mean of weights to mean anything; how they were trained may differ.
SHARED = ("checkpoint", "revision", "architecture", "layers", "image_size", "labels", "task", "image")
# How they were trained, which is nothing to a network whose weights are all at hand, and all to be kept.
_WHOLE = {"adapter": None, "train": "all", "last_blocks": None, "freeze_epochs": 0, "distill": None}
_WHOLE |= {"base_precision": "float32", "gradient_checkpointing": False, "compile": False}


def model_of(checkpoint: Checkpoint) -> ViTClassifier:
    """The network of a checkpoint without an adapter, in which all weights are kept; on the CPU.

    Raises:
        UserError: its batch norms hold statistics that no mean of weights has.
    """
    said = arguments_of(read_checkpoint(checkpoint)["hyper_parameters"])
    model = ViTClassifier(**{**said, **_WHOLE})
    model.configure_model()
    if batch_norms(model.network):
        raise UserError(
            f"{type(model.network).__name__} has batch norms, whose statistics of a mean of weights are not the mean "
            "of their statistics; a soup is for networks without (ViT, DeiT, BEiT, Swin, DINOv2, ConvNeXt)."
        )
    return model


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights of its network; an adapter is merged into them.

    The mean of two adapters' factors is not the mean of what they add to the weights.

    Raises:
        UserError: the adapter cannot be merged.
    """
    model = ViTClassifier.load_from_checkpoint(checkpoint.file, map_location="cpu", weights_only=True)
    network = model.network
    if isinstance(network, PeftModel):
        if not can_merge(network):
            raise UserError(f"The adapter of {checkpoint.file} cannot be merged into its network; leave it out.")
        network = network.merge_and_unload()
    return network.state_dict()


def check_alike(checkpoints: list[Checkpoint]) -> None:
    """Refuse networks that differ in shape, classes, preprocessing or what they started from.

    Raises:
        UserError: names two that differ, and in what.
    """
    first, *others = ((c, read_checkpoint(c)["hyper_parameters"]) for c in checkpoints)
    for other, said in others:
        for name in SHARED:
            if said.get(name) != first[1].get(name):
                raise UserError(
                    f"{first[0].file} and {other.file} differ in model.{name} ({_short(first[1].get(name))} and "
                    f"{_short(said.get(name))}); a soup is made of trainings of one network on the same classes."
                )


def mean_with(mean: Mapping[str, Tensor], count: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of `count` + 1 weights, of the mean of the others and one more; what is no fraction is the mean's."""
    return {
        name: torch.lerp(value, weights[name], 1 / (count + 1)) if value.is_floating_point() else value
        for name, value in mean.items()
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
