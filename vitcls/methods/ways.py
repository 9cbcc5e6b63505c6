"""The ways of training: each adapter method, and what trains without an adapter."""

from typing import Any, get_args

from vitcls.models.adapters import LoRA
from vitcls.models.peft_methods import MethodName

# Small values for what a method has, that small layers can take.
_LOW_RANK = {"r": 4, "alpha": 8, "dropout": 0.0}
_HADAMARD = {"r": 4, "alpha": 8}
_VALUES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("lora", "rslora", "dora", "pissa", "olora", "adalora"), _LOW_RANK),
    **dict.fromkeys(("loha", "lokr"), _HADAMARD),
    "oft": {"block_size": 8, "dropout": 0.0},
    "boft": {"block_size": 4, "dropout": 0.0},
    "vera": {"r": 4, "dropout": 0.0},
    "fourierft": {"frequencies": 16},
}
# Layers of each family that stand for its own: ConvNeXt has no attention, ResNet only convolutions.
_TARGETS = {"convnext": ["mlp"], "resnet": ["convolution"]}
WITHOUT_ADAPTER: dict[str, dict[str, Any]] = {
    "full": {},
    "head": {"train": "head"},
    "bias": {"train": "bias"},
    "last_blocks": {"last_blocks": 1},
}
WAYS: tuple[str, ...] = (*get_args(MethodName), *WITHOUT_ADAPTER)


def arguments_of(way: str, family: str) -> dict[str, Any]:
    """What ViTClassifier takes to train a small network of a family in this way."""
    if way in WITHOUT_ADAPTER:
        return WITHOUT_ADAPTER[way]
    targets = {} if way == "ln_tuning" else {"targets": _TARGETS.get(family, ["attention", "mlp"])}
    return {"adapter": LoRA(method=way, **_VALUES.get(way, {}), **targets)}  # type: ignore[arg-type]
