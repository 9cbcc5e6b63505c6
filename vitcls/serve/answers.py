"""What the server answers: the shapes that its OpenAPI describes, and how they are filled."""

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model

from vitcls.decisions import UNKNOWN, best_of
from vitcls.serve.batching import Probabilities
from vitcls.serve.engine import Engine
from vitcls.types import TOP, Task


class Problem(BaseModel):
    """Why there is no answer."""

    status: int = Field(description="of HTTP; of an image in a batch, what it would have had alone")
    message: str = Field(description="a sentence for people")
    image: str | None = Field(None, description="name of the image that is to blame")


class Score(BaseModel):
    """A class and its probability."""

    label: str
    score: float = Field(ge=0, le=1)


class Answer(BaseModel):
    """What the model says of an image."""

    image: str = Field(description="name of the file, as it was sent")
    label: str = Field(description=f"the best class, or {UNKNOWN!r} where `abstain` is above its score")
    score: float = Field(ge=0, le=1, description="probability of the best class")
    best: list[Score] = Field(description="the best classes, best first")
    present: list[str] | None = Field(None, description="multilabel: all classes that reach their threshold")


class Answers(BaseModel):
    """What the model says of the images of a request, in their order."""

    model: str = Field(description="name of the run or of the exported folder")
    images: list[Answer]


class Outcome(BaseModel):
    """Of one image of a batch: an answer, or why there is none."""

    image: str = Field(description="name of the file, as it was sent")
    answer: Answer | None = None
    error: Problem | None = None


class Outcomes(BaseModel):
    """What became of each image of a batch, in their order."""

    model: str = Field(description="name of the run or of the exported folder")
    images: list[Outcome]


class Labels(BaseModel):
    """What the model knows."""

    model: str = Field(description="name of the run or of the exported folder")
    task: Task = Field(description="multiclass: an image has one class; multilabel: any number")
    labels: list[str] = Field(description="names of the classes, in output order")
    thresholds: dict[str, float] | None = Field(None, description="multilabel: from which probability a class is there")
    attribution: bool = Field(description="whether /attribution shows where the network looked")


class State(BaseModel):
    """How the server is."""

    status: str


class Wanted(BaseModel):
    """What a client may ask besides; read from the address.

    Attributes:
        top_k: T, how many of the best classes an answer names.
        abstain: below which probability of the best class the label is `unknown`.
    """

    model_config = ConfigDict(extra="forbid")  # ?topk=3 is not to be overlooked

    top_k: int = TOP
    abstain: float = 0.0


def wanted_of(engine: Engine) -> type[Wanted]:
    """What can be asked of a model: at most as many classes as it has; to abstain only where an image has one."""
    classes = len(engine.labels)
    top = Field(min(TOP, classes), ge=1, le=classes, description="how many of the best classes an answer names")
    fields: dict[str, Any] = {"top_k": (int, top)}
    if engine.task == "multiclass" and UNKNOWN not in engine.labels:
        meaning = f"the label is `{UNKNOWN}` where the best probability is below this"
        fields["abstain"] = (float, Field(0.0, ge=0, le=1, description=meaning))
    return create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)


def answer_of(engine: Engine, name: str, probabilities: Probabilities, wanted: Wanted) -> Answer:
    """The answer about an image.

    Args:
        engine: that found it.
        name: of the image.
        probabilities: (K,) float32.
        wanted: how it is told.
    """
    (order,) = best_of(probabilities[None], wanted.top_k)
    best = [Score(label=engine.labels[n], score=_short(probabilities[n])) for n in order]
    # In 64 bits, as predict compares: 0.6 in 32 bits is above the 0.6 that was asked for.
    is_sure = float(probabilities[order[0]]) >= getattr(wanted, "abstain", 0.0)
    present = None
    if engine.task == "multilabel":
        reached = probabilities.astype(np.float64) >= engine.thresholds
        present = [label for label, there in zip(engine.labels, reached, strict=True) if there]
    return Answer(
        image=name, label=best[0].label if is_sure else UNKNOWN, score=best[0].score, best=best, present=present
    )


def _short(value: np.float32) -> float:
    """With the digits that 32 bits have, and no more."""
    return float(str(value))
