"""What the data asks of the model that it is joined with."""

from typing import Protocol

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
