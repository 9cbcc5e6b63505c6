"""What a network gives its head: the features of an image."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitcls.errors import UserError, listing
from vitcls.models.network import head_names


def head_of(network: Any) -> nn.Module:
    """The one module on top of the backbone, also below an adapter.

    Raises:
        UserError: there are several.
    """
    inside = network.get_base_model() if isinstance(network, PeftModel) else network
    names = head_names(inside)
    if len(names) != 1:
        raise UserError(
            f"The network has {len(names)} heads ({listing(names)}), so that there are no features of one; leave "
            "--data.feature_views out."
        )
    return inside.get_submodule(names[0])


def head_input(network: Any, pixel_values: Tensor) -> Tensor:
    """The features (B, F) float of normalised images (B, 3, S, S) float, in evaluation mode.

    Raises:
        UserError: the head makes other logits of them than the network of the images.
    """
    head, given = head_of(network), []
    modes = [(module, module.training) for module in network.modules()]
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits = network.eval()(pixel_values=pixel_values).logits
        features = given[0].flatten(1)
        hook.remove()
        _check_head_is_last(head, features, logits)
        return features
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training


def _check_head_is_last(head: nn.Module, features: Tensor, logits: Tensor) -> None:
    given = head(features)
    if given.shape != logits.shape or not torch.allclose(given, logits, atol=1e-5):
        raise UserError(
            "The network does more with its features than its head, so that the head cannot train on them alone; "
            "leave --data.feature_views out."
        )
