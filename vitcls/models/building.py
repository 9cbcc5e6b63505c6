"""The network that a ViTClassifier is configured with, and which part of it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcls.errors import UserError
from vitcls.models.adapters import LoRA, add_lora
from vitcls.models.exported import ExportedNetwork
from vitcls.models.input_size import fit_to_size
from vitcls.models.kept import trains_part
from vitcls.models.layer_rates import last_blocks_of
from vitcls.models.merged_adapter import check_can_go_on_top
from vitcls.models.network import (
    from_architecture,
    from_checkpoint,
    head_names,
    hold_frozen_statistics,
    train_head_only,
    train_only,
)


def build_network(
    said: Mapping[str, Any], lora: LoRA | None, labels: list[str], size: int, trains: bool
) -> tuple[Any, str]:
    """A network with a head for the labels.

    Args:
        said: ViTClassifier's arguments.
        lora: its adapter.
        labels: class names in output order.
        size: S, side of the images, pixels.
        trains: whether a new head would be trained.

    Returns:
        the network, and why its head is a new one; empty where it is the checkpoint's, or all is new.

    Raises:
        UserError: it cannot be had, or its parts do not go together.
    """
    if said["exported"] is not None:
        if trains:
            raise UserError(
                f"--model.exported {said['exported']!r} is a finished network that cannot be trained; give "
                "--model.checkpoint, such as the folder model/ of its run."
            )
        return ExportedNetwork(Path(said["exported"]).expanduser(), said["trust_exported"]), ""
    if said["checkpoint"] is None:
        return from_architecture(said["architecture"], labels, said["task"]), ""
    source = (said["checkpoint"], said["revision"], labels, said["task"], said["layers"])
    network, why_new_head = from_checkpoint(*source, trains=trains)
    if said["image_size"] is not None or hasattr(network, "merged"):
        fit_to_size(network, size if hasattr(network, "merged") else said["image_size"])
    network = _with_trained_part(network, said, lora)
    if trains_part(said):
        hold_frozen_statistics(network)
    return network, why_new_head


def _with_trained_part(network: Any, said: Mapping[str, Any], lora: LoRA | None) -> Any:
    if lora is not None:
        network = add_lora(network, lora, head_names(network), said["revision"])
        check_can_go_on_top(network)
    elif said["train"] != "all":
        train_head_only(network, biases=said["train"] == "bias")
    elif said["last_blocks"] is not None:
        train_only(network, last_blocks_of(network, said["last_blocks"]))
    return network
