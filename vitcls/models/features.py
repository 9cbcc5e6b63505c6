"""What the head of a network takes: the features of an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from vitcls.models.network import head_names


@contextmanager
def inputs_of_head(network: Any) -> Iterator[list[Tensor]]:
    """Collects, of each forward in the block, the features (B, D) that go into the head.

    They are the class token's or the pooled output, whichever the head of that network takes.

    Args:
        network: a transformers image classifier, with or without an adapter.
    """
    seen: list[Tensor] = []
    handle = _head(network).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()


def feature_width(network: Any) -> int:
    """D, how many features the head takes."""
    return next(module.in_features for module in _head(network).modules() if isinstance(module, nn.Linear))


def _head(network: Any) -> nn.Module:
    inside = network.get_base_model() if isinstance(network, PeftModel) else network
    return inside.get_submodule(head_names(inside)[0])
