import datasets
import pytest
from datasets import ClassLabel, Features, Image, Value

from vitcls.data.columns import image_column, label_column, labelled
from vitcls.errors import UserError

ANIMALS = ClassLabel(names=["cat", "ant", "bee"])
TEXT, LONG_TEXT, WHOLE, BYTE, REAL = (Value(kind) for kind in ("string", "large_string", "int64", "uint8", "float32"))


def table(feature: object, values: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": values}, features=Features(label=feature))


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        ({"image": Image(), "label": ANIMALS}, None, "image"),
        ({"label": ANIMALS, "picture": Image()}, None, "picture"),
        ({"photo": Image(decode=False), "label": ANIMALS}, None, "photo"),
        ({"image": Image(), "mask": Image()}, "mask", "mask"),
        ({"image": Image(), "mask": Image()}, "image", "image"),
    ],
)
def test_the_image_column_is_the_one_named_or_the_only_one(columns, given, expected):
    assert image_column(Features(columns), given) == expected


@pytest.mark.parametrize(
    ("columns", "given", "parts"),
    [
        ({"image": Image(), "mask": Image(), "label": ANIMALS}, None, ["Several", "image (Image)", "mask (Image)"]),
        ({"path": TEXT, "label": ANIMALS}, None, ["No column", "path (string)", "label (ClassLabel)"]),
        ({"image": Image(), "path": TEXT}, "path", ["'path'", "of type string", "image (Image)"]),
        ({"image": Image(), "label": ANIMALS}, "label", ["'label'", "of type ClassLabel", "image (Image)"]),
        ({"image": Image(), "label": ANIMALS}, "imgae", ["'imgae'", "did you mean 'image'?", "label (ClassLabel)"]),
        ({"image": Image(), "label": ANIMALS}, "zzz", ["'zzz'", "does not have. ", "image (Image)"]),
    ],
    ids=["Several", "none", "string", "classes", "misspelt", "not there"],
)
def test_an_unclear_image_column_is_refused_with_the_columns_and_their_types(columns, given, parts):
    with pytest.raises(UserError) as refusal:
        image_column(Features(columns), given)
    for part in [*parts, "--data.image_column"]:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        ({"label": ANIMALS}, None, "label"),
        ({"species": ANIMALS}, None, "species"),
        ({"species": ANIMALS, "caption": TEXT}, None, "species"),
        ({"species": ANIMALS, "label": TEXT}, None, "species"),
        ({"species": ANIMALS, "caption": TEXT, "id": WHOLE, "score": REAL}, None, "species"),
        ({"label": ANIMALS, "fine": ANIMALS}, None, "label"),
        ({"fine": ANIMALS, "labels": ANIMALS, "coarse": ANIMALS}, None, "labels"),
        ({"species": TEXT}, None, "species"),
        ({"species": LONG_TEXT, "id": WHOLE}, None, "species"),
        ({"species": TEXT, "label": TEXT}, None, "label"),
        ({"label": WHOLE}, None, "label"),
        ({"labels": BYTE, "id": WHOLE}, None, "labels"),
        ({"label": ANIMALS, "fine": ANIMALS}, "fine", "fine"),
        ({"label": ANIMALS, "caption": TEXT}, "caption", "caption"),
        ({"label": ANIMALS, "id": WHOLE}, "id", "id"),
        ({"label": ANIMALS, "grade": BYTE}, "grade", "grade"),
    ],
)
def test_the_label_column_is_the_one_named_or_the_clearest(columns, given, expected):
    assert label_column(Features(image=Image(), **columns), given) == expected


@pytest.mark.parametrize(
    ("columns", "given", "parts"),
    [
        ({"fine": ANIMALS, "coarse": ANIMALS}, None, ["Several", "fine (ClassLabel)", "coarse (ClassLabel)"]),
        ({"label": ANIMALS, "labels": ANIMALS}, None, ["Several", "label (ClassLabel)", "labels (ClassLabel)"]),
        ({"caption": TEXT, "name": LONG_TEXT}, None, ["Several", "caption (string)", "name (large_string)"]),
        ({"grade": WHOLE}, None, ["No column", "image (Image)", "grade (int64)"]),
        ({"label": REAL}, None, ["No column", "label (float32)"]),
        ({"label": Value("bool")}, None, ["No column", "label (bool)"]),
        ({"label": datasets.List(WHOLE)}, None, ["No column", "label (List)"]),
        ({"label": ANIMALS, "score": REAL}, "score", ["'score'", "of type float32", "ClassLabel, strings or whole"]),
        ({"label": ANIMALS}, "image", ["'image'", "of type Image", "ClassLabel, strings or whole"]),
        ({"label": ANIMALS, "tags": datasets.List(TEXT)}, "tags", ["'tags'", "of type List"]),
        ({"label": ANIMALS}, "lable", ["'lable'", "did you mean 'label'?", "image (Image), label (ClassLabel)"]),
        ({"label": ANIMALS}, "zzz", ["'zzz'", "does not have. ", "image (Image), label (ClassLabel)"]),
    ],
)
def test_an_unclear_label_column_is_refused_with_the_columns_and_their_types(columns, given, parts):
    with pytest.raises(UserError) as refusal:
        label_column(Features(image=Image(), **columns), given)
    for part in [*parts, "--data.label_column"]:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("feature", "values", "names", "ids"),
    [
        (ANIMALS, [2, 0, 0], ["cat", "ant", "bee"], [2, 0, 0]),
        (TEXT, ["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (LONG_TEXT, ["b", "B", "é"], ["B", "b", "é"], [1, 0, 2]),
        (WHOLE, [10, 9, 10], ["9", "10"], [1, 0, 1]),
        (BYTE, [3, 1, 10], ["1", "3", "10"], [1, 0, 2]),
    ],
    ids=["declared order", "sorted strings", "capitals", "numbers in number order", "bytes"],
)
def test_classes_are_named_and_counted(feature, values, names, ids):
    found = labelled(table(feature, values), "label", "train")
    assert found.names == names
    assert found.targets.tolist() == ids
    assert found.targets.dtype == "int64"


def test_the_images_are_not_touched():
    features = Features(image=Image(), label=ANIMALS)
    broken = [{"bytes": b"no image at all", "path": None}] * 2
    rows = datasets.Dataset.from_dict({"image": broken, "label": [1, 0]}, features=features)
    assert labelled(rows, "label", "train").targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("feature", "values", "told"),
    [
        (ANIMALS, [0, -1, 2, -1], "2 of the rows of test have no class in column 'label' (rows 1, 3)"),
        (ANIMALS, [0, None, 2], "1 of the rows of test have no class in column 'label' (rows 1)"),
        (ANIMALS, [None, -1, 2], "2 of the rows of test have no class in column 'label' (rows 0, 1)"),
        (ANIMALS, [-1] * 9, "9 of the rows of test have no class in column 'label' (rows 0, 1, 2, 3, 4, ... (4 more))"),
        (TEXT, ["a", None, "b", None], "2 of the rows of test have no class in column 'label' (rows 1, 3)"),
        (TEXT, [None, None], "2 of the rows of test have no class in column 'label' (rows 0, 1)"),
        (WHOLE, [None, None], "2 of the rows of test have no class in column 'label' (rows 0, 1)"),
    ],
)
def test_rows_without_a_class_are_refused_with_their_numbers(feature, values, told):
    with pytest.raises(UserError) as refusal:
        labelled(table(feature, values), "label", "test")
    assert str(refusal.value).startswith(told)
