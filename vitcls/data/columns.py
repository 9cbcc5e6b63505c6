"""Which columns hold the image and the class, and which class each row has."""

from dataclasses import dataclass

import datasets
import numpy as np
from numpy.typing import NDArray

from vitcls.errors import UserError, listing, suggestion

USUAL_LABEL_NAMES = ("label", "labels")


@dataclass(frozen=True)
class Labelled:
    """The classes of a table's rows.

    Attributes:
        names: the classes' names, in the order that the data declares (strings: sorted).
        ids: (N,) int64, index into `names`.
    """

    names: list[str]
    ids: NDArray[np.int64]


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


def label_column(features: datasets.Features, given: str | None = None) -> str:
    """The column of the classes: the one given, else the only ClassLabel, `label`, or the only string.

    Among several of a kind, one that is called `label` or `labels` is meant.

    Raises:
        UserError: none, several, or the given one is not there; lists the columns and their types.
    """
    if given is not None:
        _check_exists(features, given, "label")
        if not (_is_class_label(features[given]) or _is_name_or_number(features[given])):
            raise _wrong_type(features, given, "label", "classes (ClassLabel, strings or whole numbers)")
        return given
    candidates = [n for n, f in features.items() if _is_class_label(f)]
    candidates = candidates or [n for n in USUAL_LABEL_NAMES if _is_name_or_number(features.get(n))]
    candidates = candidates or [n for n, f in features.items() if _is_string(f)]
    usual = [n for n in candidates if n in USUAL_LABEL_NAMES]
    return _only(features, usual if len(usual) == 1 else candidates, "label")


def labelled(table: datasets.Dataset, column: str, where: str) -> Labelled:
    """Read the classes of all rows; the images are not touched.

    Args:
        table: the rows.
        column: from `label_column`.
        where: the split, for messages.

    Raises:
        UserError: a row without a class.
    """
    feature = table.features[column]
    values = table.select_columns([column]).with_format("numpy")[:][column]
    if _is_class_label(feature):
        return Labelled(list(feature.names), _checked(values, column, where))
    if not _is_string(feature):
        numbers, ids = np.unique(_checked(values, column, where), return_inverse=True)
        return Labelled([str(number) for number in numbers], ids.astype(np.int64))
    missing = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if missing:
        raise _unlabelled(missing, column, where)
    names, ids = np.unique(values.astype(str), return_inverse=True)
    return Labelled(names.tolist(), ids.astype(np.int64))


def _checked(values: NDArray, column: str, where: str) -> NDArray[np.int64]:
    # A missing number is NaN in a float array; -1 is the Hub's custom for hidden test labels.
    bad = np.isnan(values) | (values < 0) if values.dtype.kind == "f" else values < 0
    if bad.any():
        raise _unlabelled(np.flatnonzero(bad).tolist(), column, where)
    return values.astype(np.int64)


def _unlabelled(rows: list[int], column: str, where: str) -> UserError:
    return UserError(
        f"{len(rows)} of the rows of {where} have no class in column {column!r} (rows "
        f"{listing(map(str, rows), 5)}). Remove them, or choose another split or --data.label_column."
    )


def _is_class_label(feature: object) -> bool:
    return isinstance(feature, datasets.ClassLabel)


def _is_string(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_name_or_number(feature: object) -> bool:
    whole = isinstance(feature, datasets.Value) and feature.dtype.lstrip("u").startswith("int")
    return whole or _is_string(feature)


def _only(features: datasets.Features, candidates: list[str], kind: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"Several columns could be the {kind}" if candidates else f"No column is clearly the {kind}"
    raise UserError(f"{found}: {_columns(features)}. Choose one with --data.{kind}_column.")


def _check_exists(features: datasets.Features, given: str, kind: str) -> None:
    if given not in features:
        raise UserError(
            f"--data.{kind}_column names {given!r}, which the data does not have"
            f"{suggestion(given, features)}. The columns: {_columns(features)}."
        )


def _wrong_type(features: datasets.Features, given: str, kind: str, wanted: str) -> UserError:
    return UserError(
        f"The column {given!r} (--data.{kind}_column) is of type {_type(features[given])}, which cannot "
        f"hold {wanted}. The columns: {_columns(features)}."
    )


def _columns(features: datasets.Features) -> str:
    return listing(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: object) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
