"""What the head of a network takes: the features of an image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitcls.errors import UserError, listing
from vitcls.models.network import heads_of


@contextmanager
def inputs_of_head(network: Any) -> Iterator[list[Tensor]]:
    """Collects, of each forward in the block, the features (B, F) that go into the head.

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


@contextmanager
def embeddings_of_head(network: Any, wanted: bool) -> Iterator[Callable[[], Tensor | None]]:
    """Around the forwards of a batch, one for each view: what gives the mean of their features, (B, F) float32.

    Args:
        network: as in `inputs_of_head`.
        wanted: not: nothing is collected, and it gives None, as where there was no forward.
    """
    if not wanted:
        yield lambda: None
        return
    with inputs_of_head(network) as views:
        yield lambda: torch.stack(views).float().mean(0) if views else None


def check_embeddings(network: Any) -> None:
    """Refuse a network whose features are not what one head is given.

    Raises:
        UserError: it has several heads.
    """
    heads = heads_of(network)
    if len(heads) != 1:
        raise UserError(
            f"The network has {len(heads)} heads ({listing(heads)}), each with features of its own, so that there is "
            "no one embedding of an image; leave --embeddings out."
        )


def feature_width(network: Any) -> int:
    """F, how many features the head takes."""
    return next(module.in_features for module in _head(network).modules() if isinstance(module, nn.Linear))


def has_one_head(network: Any) -> bool:
    """Whether there is one module on top of the backbone."""
    return len(heads_of(network)) == 1


def head_of(network: Any) -> nn.Module:
    """The one module on top of the backbone, also below an adapter.

    Raises:
        UserError: there are several.
    """
    heads = heads_of(network)
    if len(heads) != 1:
        raise UserError(
            f"The network has {len(heads)} heads ({listing(heads)}), so that there are no features of one; leave "
            "--data.feature_views out."
        )
    return heads.popitem()[1]


def features_of(network: Any, pixel_values: Tensor) -> Tensor:
    """The features (B, F) float of normalised images (B, 3, S, S) float, in evaluation mode.

    Raises:
        UserError: the head makes other logits of them than the network of the images.
    """
    head = head_of(network)
    modes = [(module, module.training) for module in network.modules()]
    try:
        with inputs_of_head(network.eval()) as seen:
            logits = network(pixel_values=pixel_values).logits
        _check_head_is_last(head(seen[0]), logits)
        return seen[0]
    finally:
        for module, training in modes:
            module.training = training


def _check_head_is_last(of_features: Tensor, of_images: Tensor) -> None:
    if of_features.shape != of_images.shape or not torch.allclose(of_features, of_images, atol=1e-5):
        raise UserError(
            "The network does more with its features than its head, so that the head cannot train on them alone; "
            "leave --data.feature_views out."
        )


def _head(network: Any) -> nn.Module:
    return next(iter(heads_of(network).values()))
