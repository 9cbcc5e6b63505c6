"""Pixels as a network takes them, by an InputSpec, in numpy: what `data.preprocess` does with torch."""

import numpy as np
from numpy.typing import NDArray

from vitcls.input_spec import InputSpec
from vitcls.resizing import resize


def prepare(spec: InputSpec, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an image and cut its centre out: the bytes of `ImageSpec.eval_transform`.

    Args:
        spec: how the network wants its images.
        pixels: (H, W, 3) RGB.

    Returns:
        (3, S, S).
    """
    height, width = spec.resized_shape(*pixels.shape[:2])
    resized = resize(pixels, height, width, spec.interpolation)
    return np.ascontiguousarray(_centre(resized, spec.size).transpose(2, 0, 1))


def normalise(spec: InputSpec, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Apply mean and std: (..., 3, S, S) -> float32, the bits of `ImageSpec.normalise` on a CPU."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] * np.float32(255) for values in (spec.mean, spec.std))
    values = batch.astype(np.float32)
    values -= mean
    values /= std
    return values


def _centre(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square (S, S, 3), black where the image is smaller."""
    lacks = [max(0, size - side) for side in pixels.shape[:2]]
    if any(lacks):
        pixels = np.pad(pixels, [*((lack // 2, lack - lack // 2) for lack in lacks), (0, 0)])
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]
