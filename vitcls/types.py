"""The shapes that travel between the parts, and the letters they are described with.

B   images in a batch             K   classes
S   side of the network's input   H, W   height and width of a stored image
N   rows of a split               T   how many of the best classes a prediction keeps
V   views of an image                 F   features of an image, below the head
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # what serves an exported network has no torch
    from torch import Tensor

# Whether an image has exactly one of the classes, or any number of them, none included.
Task = Literal["multiclass", "multilabel"]
# What the rows of a table are to be recognised as: (N,) int64 class indices, or of multilabel data
# (N, K) bool, whether a row has a class.
Targets = NDArray[np.int64] | NDArray[np.bool_]
Target = int | NDArray[np.bool_]  # of a single row: the class, or (K,)
TOP = 5  # T: how many of the best classes predictions keep and top5 counts


class Sample(NamedTuple):
    """One image on its way to a batch.

    Attributes:
        pixels: (3, S, S) uint8 RGB, or (V, 3, S, S) where an image is seen in several views; or (F,), (V, F) float
            features in their place.
        label: index of its class in the model's labels, -1 where there is none (predict); of multilabel
            data (K,) float32, 1 for each class that it has.
        id: its row in the split.
        bad: images that could not be decoded and whose place this one takes.
    """

    pixels: Tensor
    label: int | Tensor
    id: int
    bad: tuple[BadImage, ...] = ()


class BadImage(NamedTuple):
    """One image that could not be decoded.

    Attributes:
        name: file, or the row in words.
        id: its row in the split.
        cause: why, in a few words.
    """

    name: str
    id: int
    cause: str


class Batch(TypedDict):
    """What a data loader gives, and what a step takes.

    Keys:
        pixel_values: (B, 3, S, S), or (B, V, 3, S, S) where images are seen in several views; uint8
            in 0..255 until it is on the device, float32 normalised after. Or (B, F), (B, V, F) float features,
            what the network's head is given, while the head trains alone.
        labels: (B,) int64 class indices, -1 where there is none (predict); of mixed training images
            (B, K) float32 shares, which add up to 1. Multilabel: (B, K) float32, 1 for each class that an
            image has, and shares in 0..1 where images are mixed.
        ids: (B,) int64 rows of the split.
        bad: the images that could not be decoded; none of them is among the B, but blank ones may
            stand there in their place.
    """

    pixel_values: Tensor
    labels: Tensor
    ids: Tensor
    bad: list[BadImage]


class Asked(NamedTuple):
    """What a predict step is asked for, of each image.

    Attributes:
        top: T, how many of the best classes; all where there are fewer.
        scores: whether the probabilities of all classes.
        embeddings: whether the features that the head is given.
    """

    top: int = TOP
    scores: bool = False
    embeddings: bool = False


PLAIN = Asked()


class Predictions(TypedDict):
    """What a predict step gives.

    Keys:
        ids: (B,) int64 rows of the input.
        scores: (B, T) float32 probabilities in 0..1, best first.
        classes: (B, T) int64 class indices, best first.
        present: (B, K) bool, multilabel only: the classes whose probability reaches their threshold.
        probabilities: (B, K) float32 in 0..1 of all classes, if asked for.
        embeddings: (B, F) float32, what the head is given, if asked for; of several views their mean.
        bad: the images of the batch that could not be decoded.
    """

    ids: Tensor
    scores: Tensor
    classes: Tensor
    present: Tensor | None
    probabilities: Tensor | None
    embeddings: Tensor | None
    bad: list[BadImage]
