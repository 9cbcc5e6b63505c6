"""What is known of one input, and what the rows of a file have."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitcls.types import Asked, Task


class Row(NamedTuple):
    """One input of predict.

    Attributes:
        id: its place among the inputs.
        file: its path, or the row in words.
        label: the best class, or `unknown`; empty where the image could not be decoded.
        best: the best classes and their probabilities in 0..1, best first; empty where it could not be decoded.
        present: multilabel: names of the classes that reach their threshold.
        probabilities: (K,) float32 of all classes, if asked for.
        embedding: (F,) float32, if asked for.
        error: why it could not be decoded, else empty.
    """

    id: int
    file: str
    label: str
    best: list[tuple[str, float]]
    present: list[str] | None
    probabilities: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None
    error: str


class Shape(NamedTuple):
    """What all rows of a file have in common.

    Attributes:
        labels: K names of classes, in output order.
        task: multilabel rows have `present`.
        top: T, how many best classes they have.
        scores: whether they have probabilities.
        width: F of their embeddings; 0: they have none.
    """

    labels: list[str]
    task: Task
    top: int
    scores: bool = False
    width: int = 0


def shape_of(labels: list[str], task: Task, asked: Asked, width: int) -> Shape:
    """The shape of the rows of a model.

    Args:
        labels: K names of classes.
        task: the model's.
        asked: what the rows are to hold.
        width: F, features of an image; 0 where they are not asked for.
    """
    return Shape(labels, task, min(asked.top, len(labels)), asked.scores, width)
