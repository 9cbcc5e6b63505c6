"""A pretrained network for images of another size than it was trained on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.errors import UserError

# Their position embeddings are a grid that is resized. DINOv2 and BEiT do it by themselves in each
# forward; Swin, ConvNeXt and ResNet have none.
_WITH_GRID = ("vit", "deit")


def fit_to_size(network: Any, size: int) -> None:
    """Make a network take images of `size`; position embeddings are interpolated, never drawn anew.

    Bicubic, by the network's own `interpolate_pos_encoding` (Dosovitskiy et al. 2020, arXiv:2010.11929,
    section 3.2): the pretrained network gives the same when it is called with that option.

    Args:
        network: a transformers classifier.
        size: S, side of the input, pixels.

    Raises:
        UserError: it cannot.
    """
    config = network.config
    patch = patch_side(network)
    check_multiple("--model.image_size", size, patch)
    if config.model_type in _WITH_GRID and config.image_size != size:
        _resize_grid(network.base_model.embeddings, size, patch)
        network.pretrained_image_size, config.image_size = config.image_size, size
    check_takes(network, size, "leave --model.image_size out, or take another checkpoint")


def patch_side(network: Any) -> int:
    """Pixels that a side of the input must be a multiple of; 1 where the network has no patches."""
    patch = getattr(network.config, "patch_size", None)
    return patch if isinstance(patch, int) else 1


def check_multiple(option: str, size: int, patch: int) -> None:
    """Refuse a side that is no multiple of the patches.

    Raises:
        UserError: names the option and a side that would do.
    """
    if size % patch:
        raise UserError(
            f"{option} is {size}; it must be a multiple of the network's patches of {patch} pixels, such as "
            f"{max(1, size // patch) * patch}."
        )


def size_words(network: Any, size: int) -> dict[str, bool]:
    """What a forward of images of `size` has to say where the network's own size is another one.

    Args:
        network: a transformers classifier, with or without an adapter.
        size: S, side of the images, pixels.
    """
    config = network.config
    other = config.model_type in _WITH_GRID and config.image_size != size
    return {"interpolate_pos_encoding": True} if other else {}


def at_size(pixel_values: Tensor, size: int | None) -> Tensor:
    """(B, 3, S, S) float, normalised or not -> the same images of side `size`; None, and features: as they are."""
    if size is None or pixel_values.ndim < 4 or size == pixel_values.shape[-1]:
        return pixel_values
    return F.interpolate(pixel_values, (size, size), mode="bicubic", antialias=True)


def _resize_grid(embeddings: Any, size: int, patch: int) -> None:
    patches, positions = embeddings.patch_embeddings, embeddings.position_embeddings
    tokens = positions.shape[1] - patches.num_patches  # class token, and DeiT's distillation token
    number = (size // patch) ** 2
    with torch.no_grad():
        resized = embeddings.interpolate_pos_encoding(
            positions.new_empty(1, tokens + number, positions.shape[2]), size, size
        )
    embeddings.position_embeddings = nn.Parameter(resized.clone(), requires_grad=positions.requires_grad)
    patches.num_patches = number
    for part in (patches, embeddings):
        if hasattr(part, "image_size"):
            part.image_size = (size, size)


def check_takes(network: Any, size: int, remedy: str) -> None:
    """Let one empty image through: not every network takes another size.

    Raises:
        UserError: it does not; `remedy` says what to do.
    """
    modes = {module: module.training for module in network.modules()}  # frozen batch norms stay in eval mode
    try:
        with torch.no_grad():  # BEiT keeps a table of this forward for those that train
            network.eval()(pixel_values=torch.zeros(1, 3, size, size), **size_words(network, size))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"A network of type {network.config.model_type!r} does not take images of {size} pixels "
            f"({' '.join(str(error).split())[:200]}); {remedy}."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
