"""A small network of each family, with random weights."""

from typing import Any

import torch

from vitcls.models.network import from_architecture

SIZE = 32  # side of their input, pixels
LABELS = ["a", "b"]
_FLAT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
_WITH_MLP = {**_FLAT, "intermediate_size": 64}
_SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
# A resume draws anew which layers are left out: trainings that are to be equal leave out none.
_ALL_LAYERS = {"drop_path_rate": 0.0}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": _WITH_MLP,
    "deit": {**_WITH_MLP, "architectures": ["DeiTForImageClassification"]},
    "beit": {**_WITH_MLP, **_ALL_LAYERS},
    "dinov2": _FLAT,
    "swin": {**_SWIN, **_ALL_LAYERS},
    # With its own layer scale of 1e-6 no change inside of a block would show in the logits.
    "convnext": {**_STAGES, "num_stages": 2, "layer_scale_init_value": 1.0},
    "resnet": {**_STAGES, "embedding_size": 8},
}


def network_of(family: str) -> Any:
    """The network of a family, the same each time."""
    torch.manual_seed(0)
    return from_architecture({"model_type": family, **FAMILIES[family]}, LABELS)
