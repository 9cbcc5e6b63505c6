"""Resizing of images as torch does it on a CPU, to the last bit, without torch."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitcls.input_spec import Interpolation

# Up to this height + width torch takes another loop for the nearest pixel (UpSampleKernel.cpp,
# `_use_vectorized_kernel_cond_2d`), which rounds otherwise where a centre falls between two pixels.
_DIRECT = 128
_MOST_PRECISE = 22  # bits; UpSampleKernel.cpp, `compute_index_ranges_int16_weights`
# Of a line, made by one matrix: 12 megapixels took 60 ms, with 2 or 32 at once twice as long. They share most of the
# pixels that they are made of; the rest of the matrix is zeros.
_PIXELS = 8
_LINES = 128  # at once: they stay in the processor's cache
# Multiplications up to which OpenBLAS starts no threads (interface/gemm.c). On two busy cores these had to wait for
# each other: 12 megapixels took 550 ms instead of 95.
_ALONE = 1 << 18


class Weights(NamedTuple):
    """What each pixel of a resized line is made of.

    Attributes:
        starts: (m,) int64, the first of the T pixels that it is made of; those beyond the line's end weigh nothing.
        shares: (m, T) int64, what each of them weighs, in 1 / 2^precision.
        precision: bits.
    """

    starts: NDArray[np.int64]
    shares: NDArray[np.int64]
    precision: int


class Band(NamedTuple):
    """Some neighbouring pixels of a resized line, as a matrix.

    Attributes:
        made: which pixels.
        made_of: of which pixels of the line.
        matrix: (made_of, made) float64, whole numbers.
    """

    made: slice
    made_of: slice
    matrix: NDArray[np.float64]


def resize(pixels: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Resize an image as torchvision resizes uint8 tensors on a CPU with AVX2.

    torch reckons in integers there, with weights of at most 15 bits: rows first, rounded, then columns.

    Args:
        pixels: (H, W, 3).
        height: of the result, pixels.
        width: of the result, pixels.
        interpolation: antialiased, but for `nearest`, which takes the pixel at each centre.

    Returns:
        (height, width, 3).
    """
    if interpolation == "nearest":
        direct = height + width <= _DIRECT
        rows, columns = _nearest(pixels.shape[0], height, direct), _nearest(pixels.shape[1], width, direct)
        return pixels[rows[:, None], columns]
    if pixels.shape[1] != width:
        pixels = _narrowed(pixels, width, interpolation)
    if pixels.shape[0] != height:
        pixels = _narrowed(pixels.transpose(1, 0, 2), height, interpolation).transpose(1, 0, 2)
    return pixels


def _nearest(size: int, new_size: int, direct: bool) -> NDArray[np.int64]:
    """(new_size,) which pixels are at the centres, rounded as torch's two loops round."""
    scale = float(np.float32(size) / np.float32(new_size))
    centres = scale * (np.arange(new_size) + 0.5)
    # Where it is not direct, scale * x - 0.5 is one operation of the processor, rounded once.
    rounded = centres.astype(np.float32) if direct else (centres - 0.5).astype(np.float32) + np.float32(0.5)
    return np.minimum(rounded.astype(np.int64), size - 1)


def _narrowed(pixels: NDArray[np.uint8], width: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """(H, W, C) -> (H, width, C); wider as well.

    Sums of whole numbers below 2^53 are exact in float64, in any order.
    """
    height, old_width, channels = pixels.shape
    weights = _weights(old_width, width, interpolation)
    resized = np.empty((height, width, channels), np.uint8)
    for band in _bands(weights, old_width):
        of_channels = np.kron(band.matrix, np.eye(channels))
        for start in range(0, height, _LINES):
            lines = pixels[start : start + _LINES, band.made_of]
            sums = _product(lines.reshape(len(lines), -1).astype(np.float64), of_channels)
            rounded = _rounded(sums, weights.precision)
            resized[start : start + _LINES, band.made] = rounded.reshape(len(lines), -1, channels)
    return resized


def _product(lines: NDArray[np.float64], matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """The product of both, of so few lines at once that it takes one thread."""
    together = max(1, _ALONE // matrix.size)
    whole = len(lines) // together * together
    stacked = lines[:whole].reshape(-1, together, len(matrix)) @ matrix
    return np.concatenate([stacked.reshape(whole, matrix.shape[1]), lines[whole:] @ matrix])


def _rounded(sums: NDArray[np.floating], precision: int) -> NDArray[np.uint8]:
    half = 1 << (precision - 1)
    return ((sums.astype(np.int32) + half) >> precision).clip(0, 255).astype(np.uint8)


def _bands(weights: Weights, size: int) -> Iterator[Band]:
    new_size, taps = weights.shares.shape
    for start in range(0, new_size, _PIXELS):
        stop = min(start + _PIXELS, new_size)
        first, last = weights.starts[start], weights.starts[stop - 1] + taps
        matrix = np.zeros((last - first, stop - start))
        for column, pixel in enumerate(range(start, stop)):
            place = weights.starts[pixel] - first
            matrix[place : place + taps, column] = weights.shares[pixel]
        yield Band(slice(start, stop), slice(first, min(last, size)), matrix[: size - first])


@lru_cache(maxsize=32)  # photos of one camera have few sizes
def _weights(size: int, new_size: int, interpolation: Interpolation) -> Weights:
    starts, shares = _shares(size, new_size, interpolation)
    precision = _precision(shares.max())
    return Weights(starts, _half_away_from_zero(shares * (1 << precision)), precision)


def _shares(size: int, new_size: int, interpolation: Interpolation) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The starts of `Weights`, and shares (m, T) float64 that add up to 1 for each pixel."""
    scale = size / new_size
    stretch = max(scale, 1.0)  # of the filter, for antialiasing
    support = stretch * (2.0 if interpolation == "bicubic" else 1.0)
    centres = scale * (np.arange(new_size) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + support + 0.5).astype(np.int64), size) - starts
    taps = np.arange(counts.max())
    distances = (taps + starts[:, None] - centres[:, None] + 0.5) * (1.0 / stretch)
    shares = np.where(taps < counts[:, None], _filter(np.abs(distances), interpolation), 0.0)
    totals = np.add.accumulate(shares, axis=1)[:, -1:]  # one after the other, as torch adds them
    return starts, shares / totals


def _filter(x: NDArray[np.float64], interpolation: Interpolation) -> NDArray[np.float64]:
    """Of distances in pixels: a triangle, or the cubic of Keys 1981 with a = -0.5."""
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _precision(largest: float) -> int:
    """The most bits with which the largest share is below 2^15."""
    for precision in range(_MOST_PRECISE):
        if int(0.5 + largest * (1 << (precision + 1))) >= 1 << 15:
            return precision
    return _MOST_PRECISE


def _half_away_from_zero(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return (values + np.copysign(0.5, values)).astype(np.int64)
