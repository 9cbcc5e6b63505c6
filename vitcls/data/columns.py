"""Which columns hold the image and the class, and which class, or which classes, each row has."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from vitcls.data.label_form import (
    USUAL_LABEL_NAMES,
    LabelForm,
    holds_class,
    is_class_label,
    is_missing,
    is_name_or_number,
    is_string,
    one_class,
    parts,
)
from vitcls.errors import UserError, listing, suggestion
from vitcls.types import Targets

log = logging.getLogger(__name__)

ONE_CLASS = LabelForm()


@dataclass(frozen=True)
class Labelled:
    """The classes of a table's rows.

    Attributes:
        names: the classes' names, in the order that the data declares (strings: sorted).
        targets: (N,) int64, index into `names`; of several classes (N, K) bool, which of them.
    """

    names: list[str]
    targets: Targets


def image_column(features: datasets.Features, given: str | None = None) -> str:
    """The column of the images: the one given, or the only one of type Image.

    Raises:
        UserError: none, several, or the given one is not there; lists the columns and their types.
    """
    if given is not None:
        _check_exists(features, given, "image")
        if not isinstance(features[given], datasets.Image):
            raise _wrong_type(features, given, "image", "images (the type Image)")
        return given
    return _only(features, [n for n, f in features.items() if isinstance(f, datasets.Image)], "image")


def label_column(features: datasets.Features, given: str | None = None, form: LabelForm = ONE_CLASS) -> str:
    """The column of the classes: the one given, else the only ClassLabel, `label`, or the only string.

    Among several of a kind, one that is called `label` or `labels` is meant. Of several classes for an
    image the same counts for what the lists hold.

    Raises:
        UserError: none, several, or the given one is not there; lists the columns and their types, and
            says how to take a column of another form.
    """
    classes = form.classes_in(features)
    if given is not None:
        _check_exists(features, given, "label")
        if not holds_class(classes.get(given)):
            raise _wrong_type(features, given, "label", form.holds, form.advice(given, features[given]))
        return given
    candidates = _clearest(classes)
    clearest = _clearest({name: one_class(feature) for name, feature in features.items()})
    if form.task == "multiclass" and not set(clearest) & set(classes):
        candidates = []  # a caption is no class where `labels` are lists
    usual = [n for n in candidates if n in USUAL_LABEL_NAMES]
    advice = "" if candidates else next(filter(None, (form.advice(n, features[n]) for n in clearest)), "")
    return _only(features, usual if len(usual) == 1 else candidates, "label", advice)


def labelled(table: datasets.Dataset, column: str, where: str, form: LabelForm = ONE_CLASS) -> Labelled:
    """Read the classes of all rows; the images are not touched.

    Args:
        table: the rows.
        column: from `label_column`.
        where: the split, for messages.
        form: of the column.

    Raises:
        UserError: a row without a class; of several classes, one that does not say whether it has any.
    """
    feature = table.features[column]
    if form.task == "multilabel":
        return _several(table, column, where, form.delimiter)
    values = table.select_columns([column]).with_format("numpy")[:][column]
    empty = np.flatnonzero(values == "").tolist() if is_string(feature) else []
    if empty:
        raise _unlabelled(empty, column, where)
    return _named(feature, values, column, where)


def _clearest(classes: Mapping[str, object]) -> list[str]:
    """Columns that could be the label, of the clearest kind that there is."""
    candidates = [n for n, f in classes.items() if is_class_label(f)]
    candidates = candidates or [n for n in USUAL_LABEL_NAMES if is_name_or_number(classes.get(n))]
    return candidates or [n for n, f in classes.items() if is_string(f)]


def _several(table: datasets.Dataset, column: str, where: str, delimiter: str | None) -> Labelled:
    """The classes of rows that have several, or none."""
    rows = table.select_columns([column])[:][column]
    unknown = [number for number, row in enumerate(rows) if _is_unknown(row)]
    if unknown:
        raise _unlabelled(unknown, column, where, " An image with none of the classes has an empty list or string.")
    if delimiter is not None and not any(delimiter in row for row in rows):
        log.warning("--data.label_delimiter %r occurs in no row of the column %r of %s", delimiter, column, where)
    lists = rows if delimiter is None else [parts(row, delimiter) for row in rows]
    feature = one_class(table.features[column])
    values = np.array(list(chain.from_iterable(lists)), dtype=object if is_string(feature) else np.int64)
    flat = _named(feature, values, column, where)
    targets = np.zeros((len(rows), len(flat.names)), dtype=np.bool_)
    targets[np.repeat(np.arange(len(rows)), [len(several) for several in lists]), flat.targets] = True
    return Labelled(flat.names, targets)


def _named(feature: object, values: NDArray, column: str, where: str) -> Labelled:
    """One class for each of the values."""
    if is_class_label(feature):
        return Labelled(list(feature.names), _checked(values, column, where))  # type: ignore[attr-defined]
    if not is_string(feature):
        numbers, ids = np.unique(_checked(values, column, where), return_inverse=True)
        return Labelled([str(number) for number in numbers], ids.astype(np.int64))
    missing = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if missing:
        raise _unlabelled(missing, column, where)
    names, ids = np.unique(values.astype(str), return_inverse=True)
    return Labelled(names.tolist(), ids.astype(np.int64))


def _is_unknown(several: list[Any] | str | None) -> bool:
    return several is None or (isinstance(several, list) and any(map(is_missing, several)))


def _checked(values: NDArray, column: str, where: str) -> NDArray[np.int64]:
    # As `is_missing`, of all rows at once; a missing number is NaN in a float array.
    bad = np.isnan(values) | (values < 0) if values.dtype.kind == "f" else values < 0
    if bad.any():
        raise _unlabelled(np.flatnonzero(bad).tolist(), column, where)
    return values.astype(np.int64)


def _unlabelled(rows: list[int], column: str, where: str, empty: str = "") -> UserError:
    return UserError(
        f"{len(rows)} of the rows of {where} have no class in column {column!r} (rows "
        f"{listing(map(str, rows), 5)}). Remove them, or choose another split or --data.label_column.{empty}"
    )


def _only(features: datasets.Features, candidates: list[str], kind: str, advice: str = "") -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"Several columns could be the {kind}" if candidates else f"No column is clearly the {kind}"
    raise UserError(f"{found}: {_columns(features)}. Choose one with --data.{kind}_column.{advice}")


def _check_exists(features: datasets.Features, given: str, kind: str) -> None:
    if given not in features:
        raise UserError(
            f"--data.{kind}_column names {given!r}, which the data does not have"
            f"{suggestion(given, features)}. The columns: {_columns(features)}."
        )


def _wrong_type(features: datasets.Features, given: str, kind: str, wanted: str, advice: str = "") -> UserError:
    return UserError(
        f"The column {given!r} (--data.{kind}_column) is of type {_type(features[given])}, which cannot "
        f"hold {wanted}.{advice} The columns: {_columns(features)}."
    )


def _columns(features: datasets.Features) -> str:
    return listing(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: object) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
