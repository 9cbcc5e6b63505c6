"""Exports that transformers and peft load: whole weights, or an adapter and what belongs to it."""

from pathlib import Path

from peft import PeftModel

from vitcls.errors import UserError
from vitcls.export.shipped import Shipped
from vitcls.models.folder import stays_adapter, write_model_folder
from vitcls.models.peft_methods import can_merge


def write_huggingface(shipped: Shipped, folder: Path) -> str:
    """Whole weights, an adapter merged into them, with labels and image processor.

    Returns:
        the name of the file of the weights.

    Raises:
        UserError: the adapter cannot be merged.
    """
    network = shipped.model.network
    if isinstance(network, PeftModel) and not can_merge(network):
        raise UserError(
            "The adapter of this run cannot be merged into its network, so that there are no whole weights; export it "
            "with --to adapter, or as a graph with --to onnx."
        )
    write_model_folder(shipped.model, folder, merges=True)
    return "model.safetensors"


def write_adapter(shipped: Shipped, folder: Path) -> str:
    """The adapter and the head, with labels, image processor and the name and revision of its base.

    Returns:
        the name of the file of their weights.

    Raises:
        UserError: there is no adapter, or none whose base can be had.
    """
    if not stays_adapter(shipped.model.network):
        raise UserError(
            "This run has no adapter on a base that others can load; export its whole weights, with --to huggingface."
        )
    write_model_folder(shipped.model, folder)
    return "adapter_model.safetensors"
