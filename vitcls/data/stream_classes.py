"""Which class, or which classes, a single row of a stream has."""

from typing import Any

import numpy as np

from vitcls.data.label_form import LabelForm, is_class_label, is_missing, one_class, parts
from vitcls.errors import UserError, listing
from vitcls.types import Target


def declared_classes(feature: object, column: str) -> list[str]:
    """The names of the classes, of a column that declares them.

    Raises:
        UserError: it does not; a table would be read for them, a stream cannot.
    """
    single = one_class(feature)
    if not is_class_label(single):
        raise UserError(
            f"A stream's classes must be known before it is read, but the column {column!r} does not declare them "
            f"({getattr(single, 'dtype', type(single).__name__)}). Give data whose column is a ClassLabel, or a model "
            "that has learned these classes, or leave --data.streaming out."
        )
    return list(single.names)  # type: ignore[attr-defined]


class RowTarget:
    """A value of the column of classes -> the target of its row.

    Args:
        feature: type of the column.
        form: in which it says the classes.
        labels: the model's classes, in output order.
        where: the split, for messages.
    """

    def __init__(self, feature: object, form: LabelForm, labels: list[str], where: str) -> None:
        single = one_class(feature)
        self._names = list(single.names) if is_class_label(single) else None  # type: ignore[attr-defined]
        self._form = form
        self._index = {label: i for i, label in enumerate(labels)}
        self._where = where

    def __call__(self, value: Any) -> Target:
        """The index of the class; of several classes (K,) bool.

        Raises:
            UserError: there is no class, or one that the model does not know.
        """
        if self._form.task == "multiclass":
            return self._index_of(value)
        if value is None:
            raise self._without_class()
        several = value if self._form.delimiter is None else parts(value, self._form.delimiter)
        target = np.zeros(len(self._index), dtype=np.bool_)
        target[[self._index_of(one) for one in several]] = True
        return target

    def _index_of(self, value: Any) -> int:
        if is_missing(value):
            raise self._without_class()
        name = self._names[value] if self._names is not None else str(value)
        if name not in self._index:
            raise UserError(
                f"The {self._where} data has a class that the model does not know: {name!r}. The model's "
                f"{len(self._index)} classes: {listing(self._index, 8)}.",
                of_one_process=True,
            )
        return self._index[name]

    def _without_class(self) -> UserError:
        return UserError(
            f"A row of the {self._where} data has no class; remove such rows, or choose another --data.label_column.",
            of_one_process=True,
        )
