"""What the data asks of the model that it is joined with."""

from typing import Protocol

from torch import Tensor

from vitcls.data.preprocess import ImageSpec
from vitcls.types import Task


class Classifier(Protocol):
    """The model, as the data knows it."""

    @property
    def labels(self) -> list[str] | None:
        """Its class names in output order, if it has some already."""

    @property
    def image_spec(self) -> ImageSpec:
        """How it wants its images."""

    @property
    def task(self) -> Task:
        """Whether an image has one class or any number of them."""

    @property
    def head_epochs(self) -> float:
        """How many first epochs of a training train the head alone; infinity where all do."""

    def features(self, pixel_values: Tensor) -> Tensor:
        """What its head is given: (B, 3, S, S) float -> (B, F) float, (B, V, 3, S, S) -> (B, V, F)."""
