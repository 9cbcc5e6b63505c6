"""What the server needs of a model."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Attribution = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Engine(Protocol):
    """A trained model, ready to answer.

    Attributes:
        name: of what is served, for people; no path.
        labels: K names of the classes, in output order.
        task: `multiclass` or `multilabel`; of the first, the probabilities of an image add up to 1.
        thresholds: (K,) float64: multilabel: from which probability a label is there.
        attributed: an image (H, W, 3) uint8 -> (S, S, 3) uint8, what spoke for its best class; from the thread of
            `probabilities`. None: the model cannot tell.
    """

    name: str
    labels: list[str]
    task: str
    thresholds: NDArray[np.float64]
    attributed: Attribution | None

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W, 3) uint8 RGB -> (3, S, S) uint8, as the network sees it; from several threads at once."""

    def probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, 3, S, S) uint8 -> (B, K) float32 in 0..1; from one thread."""
