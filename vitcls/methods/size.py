"""How much of ViT-B/16 each way of training trains and keeps."""

import torch
from transformers import AutoModelForImageClassification, ViTConfig

from vitcls.methods.ways import WITHOUT_ADAPTER
from vitcls.models.adapters import LoRA, add_lora
from vitcls.models.layer_rates import last_blocks_of
from vitcls.models.network import head_names, train_head_only, train_only

CLASSES = 101  # of Food-101, as in the published guide (667,493 for LoRA)
BYTES = 4  # of a float32


def trained_parameters(way: str) -> int:
    """Parameters of ViT-B/16 with 101 classes that train, with the default values of the way."""
    # Nothing is computed, but BOFT asks its matrices for values, which tensors without memory do not have.
    with torch.device("cpu" if way == "boft" else "meta"):
        network = AutoModelForImageClassification.from_config(ViTConfig(num_labels=CLASSES))
        if way not in WITHOUT_ADAPTER:
            network = add_lora(network, LoRA(method=way), head_names(network))  # type: ignore[arg-type]
    if way in ("head", "bias"):
        train_head_only(network, biases=way == "bias")
    if way == "last_blocks":
        train_only(network, last_blocks_of(network, WITHOUT_ADAPTER[way]["last_blocks"]))
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
