"""In which form a column says the classes of an image: one, a list of them, or several in one string."""

from dataclasses import dataclass

import datasets

from vitcls.errors import UserError
from vitcls.types import Task

USUAL_LABEL_NAMES = ("label", "labels")


@dataclass(frozen=True)
class LabelForm:
    """The form that the column of labels is to have.

    Attributes:
        task: `multiclass`: a class in each row; `multilabel`: a list of classes, which may be empty.
        delimiter: multilabel: what separates the classes in one string; None: the column holds lists.

    Raises:
        UserError: a delimiter without multilabel.
    """

    task: Task = "multiclass"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.task == "multiclass" and self.delimiter is not None:
            raise UserError(
                f"--data.label_delimiter {self.delimiter!r} separates several classes of an image, but --model.task "
                "is multiclass, one class for each; say --model.task multilabel, or leave the delimiter out."
            )

    @property
    def holds(self) -> str:
        """What a column of this form holds, for messages."""
        if self.task == "multiclass":
            return "classes (ClassLabel, strings or whole numbers)"
        return "several classes (lists of them)" if self.delimiter is None else "several classes (strings)"

    def classes_in(self, features: datasets.Features) -> dict[str, object]:
        """The columns of this form, each with the type of a single class in it."""
        if self.task == "multiclass":
            return {name: feature for name, feature in features.items() if not is_list(feature)}
        if self.delimiter is None:
            return {name: feature.feature for name, feature in features.items() if is_list(feature)}
        return {name: feature for name, feature in features.items() if is_string(feature)}

    def advice(self, name: str, feature: object) -> str:
        """What to say instead, as a sentence, where a column has another form; else nothing."""
        if is_list(feature) and self.task == "multiclass":
            return f" {name!r} holds several classes for an image: to learn them, say --model.task multilabel."
        if is_list(feature) and self.delimiter is not None:
            return f" {name!r} holds lists of classes: leave --data.label_delimiter out."
        if is_string(feature) and self.task == "multilabel" and self.delimiter is None:
            return (
                f" {name!r} holds one string for an image: say what separates the classes in it with "
                "--data.label_delimiter, such as '|', or --model.task multiclass if it is one class."
            )
        if holds_class(feature) and self.task == "multilabel":
            return f" {name!r} holds one class for an image: to learn it, say --model.task multiclass."
        return ""


def one_class(feature: object) -> object:
    """The type of a single class, whether a column holds one or a list."""
    return feature.feature if is_list(feature) else feature  # type: ignore[attr-defined]


def is_missing(value: object) -> bool:
    """Whether a row's value is no class: nothing, or -1, the Hub's custom for hidden test labels."""
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def parts(text: str, delimiter: str) -> list[str]:
    """The classes in one string."""
    return [part.strip() for part in text.split(delimiter) if part.strip()]


def is_list(feature: object) -> bool:
    """Whether a column holds a list in each row."""
    return isinstance(feature, (datasets.List, datasets.LargeList))


def is_class_label(feature: object) -> bool:
    """Whether a column holds classes whose names the data declares."""
    return isinstance(feature, datasets.ClassLabel)


def is_string(feature: object) -> bool:
    """Whether a column holds text."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def is_name_or_number(feature: object) -> bool:
    """Whether a column holds text or whole numbers."""
    whole = isinstance(feature, datasets.Value) and feature.dtype.lstrip("u").startswith("int")
    return whole or is_string(feature)


def holds_class(feature: object) -> bool:
    """Whether a column can hold a class in each row."""
    return is_class_label(feature) or is_name_or_number(feature)
