"""Where a network looked: which patches speak for the class that it names."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.models.classifier import ViTClassifier

HEAT = (255.0, 80.0, 0.0)  # over the image in grey
STRENGTH = 0.65


def has_attention(model: ViTClassifier) -> bool:
    """Whether every patch of the network attends to every other, as in ViT, DeiT, BEiT and DINOv2, not in Swin."""
    return model.network.config.model_type in ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit")


def attributed(model: ViTClassifier, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as the network sees it, in grey, and over it in colour what speaks for the class that it names.

    Args:
        model: of a network that `has_attention`, in evaluation mode.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (S, S, 3) uint8.
    """
    seen = model.image_spec.eval_transform(torch.from_numpy(image).permute(2, 0, 1))
    heat = relevance(model, model.image_spec.normalise(seen[None]).to(model.device))
    heat = F.interpolate(heat[None, None].cpu(), seen.shape[-2:], mode="bilinear")[0, 0]
    heat = (STRENGTH * heat / heat.max().clamp(min=1e-12))[..., None]
    grey = seen.float().mean(dim=0)[..., None]
    return (grey * (1 - heat) + heat * torch.tensor(HEAT)).round().byte().numpy()


def relevance(model: ViTClassifier, pixel_values: Tensor) -> Tensor:
    """How much each patch speaks for the best class (Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6).

    Args:
        model: of a network that `has_attention`.
        pixel_values: (1, 3, S, S) float, normalised.

    Returns:
        (rows, columns) float32 of patches, at least 0.
    """
    attentions, gradients = _attended(model.network, pixel_values)
    tokens = attentions[0].shape[-1]
    relevant = own = torch.eye(tokens, device=pixel_values.device)
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevant = relevant + (gradient * attention).clamp(min=0).mean(dim=1)[0].float() @ relevant
    relevant = relevant - own
    side = model.image_spec.size // _patch_size(model.network.config)
    patches = tokens - side * side  # after the class token, a distillation token, registers
    asked = _asked_by_head(model.network.config, relevant, patches)
    return asked[patches:].reshape(side, side).detach()


def _attended(network: Any, pixel_values: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Attentions of the layers, (1, heads, tokens, tokens) each, and the gradients of the best logit by them."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")  # the others keep no attention
    try:
        with torch.enable_grad():
            # Of a head trained alone nothing else asks for gradients.
            found = network(pixel_values=pixel_values.detach().requires_grad_(), output_attentions=True)
            return found.attentions, torch.autograd.grad(found.logits.max(), found.attentions)
    finally:
        network.set_attn_implementation(before)


def _patch_size(config: Any) -> int:
    size = config.patch_size
    return size if isinstance(size, int) else size[0]


def _asked_by_head(config: Any, relevant: Tensor, patches: int) -> Tensor:
    """(tokens,) of (tokens, tokens): of what the head is given, the class token, the mean of the patches or both."""
    token, mean = relevant[0], relevant[patches:].mean(dim=0)
    if config.model_type in ("dinov2", "dinov2_with_registers"):
        return (token + mean) / 2
    return mean if getattr(config, "use_mean_pooling", False) else token
