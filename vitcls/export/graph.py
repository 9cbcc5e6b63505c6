"""The classifier as a function of tensors alone, of which a graph is made."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitcls.export.shipped import Shipped
from vitcls.models.folder import merged
from vitcls.models.peft_methods import can_merge

_TRACED = 2  # images: a batch of one would be taken for a constant


class Logits(nn.Module):
    """Images -> logits (B, K) float32, divided by the temperature.

    Args:
        shipped: the classifier; its adapter is merged, where that can be done.
        takes: `float32`: (B, 3, S, S), normalised; `uint8`: (B, 3, S, S), normalised in here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shipped: Shipped, takes: str) -> None:
        super().__init__()
        network, self._spec = shipped.model.network, shipped.model.image_spec
        is_whole = isinstance(network, PeftModel) and not can_merge(network)
        self.network: Any = network if is_whole else merged(network)
        self.takes = takes
        for name in ("mean", "std"):  # scaled as in ImageSpec.normalise
            values = torch.tensor(getattr(self._spec, name))
            self.register_buffer(name, values.mul_(255).view(3, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The logits."""
        if self.takes == "uint8":
            pixel_values = (pixel_values.float() - self.mean) / self.std
        return self.network(pixel_values=pixel_values).logits

    def example(self) -> Tensor:
        """Images to trace it with."""
        side = self._spec.size
        return torch.zeros(_TRACED, 3, side, side, dtype=getattr(torch, self.takes))
