"""Columns that hold several classes for an image: found, read, and refused where the task is another."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, LargeList, List, Value

from vitcls.data.columns import label_column, labelled
from vitcls.data.label_form import LabelForm
from vitcls.errors import UserError

ANIMALS = ClassLabel(names=["cat", "ant", "bee"])
TEXT, WHOLE, REAL = (Value(kind) for kind in ("string", "int64", "float32"))
LISTS, STRINGS, ONE = LabelForm("multilabel"), LabelForm("multilabel", "|"), LabelForm()


def table(feature: object, values: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tags": values}, features=Features(tags=feature))


@pytest.mark.parametrize(
    ("columns", "given", "form", "expected"),
    [
        ({"tags": List(ANIMALS)}, None, LISTS, "tags"),
        ({"tags": LargeList(ANIMALS)}, None, LISTS, "tags"),
        ({"tags": List(TEXT), "boxes": List(REAL)}, None, LISTS, "tags"),
        ({"tags": List(ANIMALS), "words": List(TEXT), "label": ANIMALS}, None, LISTS, "tags"),
        ({"labels": List(WHOLE), "words": List(TEXT)}, None, LISTS, "labels"),
        ({"labels": List(ANIMALS), "others": List(ANIMALS)}, None, LISTS, "labels"),
        ({"tags": List(ANIMALS), "others": List(ANIMALS)}, "others", LISTS, "others"),
        ({"tags": List(WHOLE)}, "tags", LISTS, "tags"),
        ({"tags": TEXT}, None, STRINGS, "tags"),
        ({"labels": TEXT, "caption": TEXT, "tags": List(TEXT)}, None, STRINGS, "labels"),
        ({"labels": TEXT, "caption": TEXT}, "caption", STRINGS, "caption"),
        ({"label": ANIMALS, "tags": List(ANIMALS)}, None, ONE, "label"),
        ({"species": TEXT, "boxes": List(WHOLE)}, None, ONE, "species"),
    ],
)
def test_the_label_column_has_the_form_of_the_task(columns, given, form, expected):
    assert label_column(Features(image=Image(), **columns), given, form) == expected


TO_MULTILABEL = " holds several classes for an image: to learn them, say --model.task multilabel."
TO_MULTICLASS = " holds one class for an image: to learn it, say --model.task multiclass."
TO_DELIMITER = "such as '|', or --model.task multiclass if it is one class."


@pytest.mark.parametrize(
    ("columns", "given", "form", "parts"),
    [
        ({"tags": List(ANIMALS)}, None, ONE, ["No column is clearly the label", f"'tags'{TO_MULTILABEL}"]),
        ({"tags": List(TEXT)}, "tags", ONE, ["'tags' (--data.label_column) is of type List", f"'tags'{TO_MULTILABEL}"]),
        ({"labels": List(WHOLE), "caption": TEXT}, None, ONE, ["No column", f"'labels'{TO_MULTILABEL}"]),
        ({"tags": List(ANIMALS), "file": TEXT}, None, ONE, ["No column", f"'tags'{TO_MULTILABEL}"]),
        ({"kind": ANIMALS}, None, LISTS, ["No column", f"'kind'{TO_MULTICLASS}"]),
        ({"label": WHOLE}, "label", LISTS, ["of type int64", "several classes (lists of them)", TO_MULTICLASS]),
        ({"tags": TEXT}, None, LISTS, ["No column", "'tags' holds one string for an image: say what", TO_DELIMITER]),
        ({"tags": List(TEXT)}, None, STRINGS, ["No column", "'tags' holds lists of classes: leave --data.label_del"]),
        ({"kind": ANIMALS}, "kind", STRINGS, ["of type ClassLabel", "several classes (strings)", TO_MULTICLASS]),
        ({"a": List(ANIMALS), "b": List(ANIMALS)}, None, LISTS, ["Several columns", "a (List), b (List)"]),
        ({"a": TEXT, "b": TEXT}, None, STRINGS, ["Several columns", "a (string), b (string)"]),
        ({"boxes": List(REAL)}, None, LISTS, ["No column is clearly the label: image (Image), boxes (List). Choose"]),
    ],
)
def test_data_of_the_other_task_is_refused_with_the_column_and_what_to_say(columns, given, form, parts):
    with pytest.raises(UserError) as refusal:
        label_column(Features(image=Image(), **columns), given, form)
    for part in [*parts, "--data.label_column"]:
        assert part in str(refusal.value)


def test_several_columns_are_not_told_to_change_the_task():
    with pytest.raises(UserError) as refusal:
        label_column(Features(a=ANIMALS, b=ANIMALS, tags=List(ANIMALS)), None, ONE)
    assert str(refusal.value).endswith("Choose one with --data.label_column.")


def test_a_delimiter_without_the_task_is_refused():
    with pytest.raises(UserError, match=r"say --model\.task multilabel, or leave the delimiter out"):
        LabelForm("multiclass", ";")


@pytest.mark.parametrize(
    ("feature", "values", "form", "names", "expected"),
    [
        (List(ANIMALS), [[2, 0], [], [1, 1]], LISTS, ["cat", "ant", "bee"], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (List(TEXT), [["dog"], ["cat", "dog"], []], LISTS, ["cat", "dog"], [[0, 1], [1, 1], [0, 0]]),
        (List(WHOLE), [[10, 9], [9], []], LISTS, ["9", "10"], [[1, 1], [1, 0], [0, 0]]),
        (TEXT, ["dog | cat", "", "cat", "|dog||"], STRINGS, ["cat", "dog"], [[1, 1], [0, 0], [1, 0], [0, 1]]),
        (TEXT, ["a b", "b"], LabelForm("multilabel", " "), ["a", "b"], [[1, 1], [0, 1]]),
        (TEXT, ["a::b", "b:c"], LabelForm("multilabel", "::"), ["a", "b", "b:c"], [[1, 1, 0], [0, 0, 1]]),
        (List(TEXT), [[], []], LISTS, [], [[], []]),
        (List(ANIMALS), [[], []], LISTS, ["cat", "ant", "bee"], [[0, 0, 0], [0, 0, 0]]),
    ],
    ids=["declared", "strings", "numbers", "one string", "a space", "two characters", "nothing", "nothing declared"],
)
def test_the_classes_of_each_row_are_read(feature, values, form, names, expected):
    found = labelled(table(feature, values), "tags", "train", form)
    assert found.names == names
    assert found.targets.dtype == np.bool_
    assert found.targets.tolist() == np.array(expected, dtype=bool).tolist()


@pytest.mark.parametrize(
    ("feature", "values", "form", "told"),
    [
        (List(ANIMALS), [[0], None, [1]], LISTS, "1 of the rows of test have no class in column 'tags' (rows 1)"),
        (
            List(ANIMALS),
            [[0], [-1], [1, -1]],
            LISTS,
            "2 of the rows of test have no class in column 'tags' (rows 1, 2)",
        ),
        (List(TEXT), [[None], ["a"]], LISTS, "1 of the rows of test have no class in column 'tags' (rows 0)"),
        (TEXT, ["a", None], STRINGS, "1 of the rows of test have no class in column 'tags' (rows 1)"),
    ],
)
def test_rows_that_do_not_say_whether_they_have_a_class_are_refused(feature, values, form, told):
    with pytest.raises(UserError) as refusal:
        labelled(table(feature, values), "tags", "test", form)
    assert str(refusal.value).startswith(told)
    assert str(refusal.value).endswith("An image with none of the classes has an empty list or string.")
