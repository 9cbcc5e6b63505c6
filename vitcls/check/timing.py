"""How long a training step takes, to set beside the time that decoding takes."""

import time

import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.data.preprocess import ImageSpec
from vitcls.models.classifier import ViTClassifier

_IMAGES = 8  # enough to tell, few enough for any machine
_STEPS = 2


def seconds_per_image(model: ViTClassifier, spec: ImageSpec, classes: int) -> float:
    """Seconds of forward and backward for each image, in float32 on the device at hand; the best of two steps.

    Args:
        model: with its network built.
        spec: the network's input.
        classes: K.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.train().to(device)
    pixels = torch.randn(_IMAGES, 3, spec.size, spec.size, device=device)
    labels = torch.arange(_IMAGES, device=device) % classes
    times = []
    for _ in range(1 + _STEPS):  # the first one warms up
        start = time.perf_counter()
        F.cross_entropy(network(pixels), labels).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        network.zero_grad(set_to_none=True)
    return min(times[1:]) / _IMAGES
