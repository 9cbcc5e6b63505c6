import shutil

import datasets
import numpy as np
import pytest

from tests.conftest import draw_split
from vitcls.data.sources import FolderSource
from vitcls.data.splits import Split, fingerprint, matched, stratified_sample
from vitcls.errors import UserError


def shuffled_classes(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Class ids of rows in no order, `sizes` of each class."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def counts(ids: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(ids, minlength=classes)


def image_table(paths: list[str | None]) -> datasets.Dataset:
    column = [{"bytes": b"not read", "path": path} for path in paths]
    return datasets.Dataset.from_dict({"image": column}, features=datasets.Features(image=datasets.Image()))


def split_of(sizes: list[int]) -> Split:
    """A split whose rows are every other row of its table."""
    ids = shuffled_classes(sizes)
    table = image_table([f"{row}.jpg" for row in range(2 * len(ids))])
    return Split("train", table, 2 * np.arange(len(ids)), ids, "image", "digest of the table")


RANDOM_CASES = [
    (np.random.default_rng(seed).integers(2, 60, size=3 * seed + 1).tolist(), share, seed)
    for seed in range(12)
    for share in (0.03, 0.1, 0.25, 0.5, 0.8)
]


@pytest.mark.parametrize(("sizes", "share", "seed"), RANDOM_CASES)
def test_a_sample_has_the_count_no_row_twice_and_of_each_class_its_share_within_one_row(sizes, share, seed):
    ids = shuffled_classes(sizes, seed)
    count = round(share * len(ids))
    sample = stratified_sample(ids, count, seed)
    assert len(sample) == count
    assert (np.diff(sample) > 0).all()
    assert count == 0 or (sample[0] >= 0 and sample[-1] < len(ids))
    exact = np.array(sizes) * count / len(ids)
    assert np.abs(counts(ids[sample], len(sizes)) - exact).max() <= 1


@pytest.mark.parametrize(("classes", "size", "count"), [(7, 31, 50), (100, 6, 333), (37, 100, 370), (10, 10, 99)])
def test_classes_of_one_size_lose_equally_many_within_one_row(classes, size, count):
    ids = shuffled_classes([size] * classes)
    taken = counts(ids[stratified_sample(ids, count, seed=3)], classes)
    assert taken.max() - taken.min() <= 1


def test_many_small_classes_do_not_lose_their_share_to_a_large_one():
    sizes = [1000] + [4] * 25
    taken = counts(shuffled_classes(sizes)[stratified_sample(shuffled_classes(sizes), 110, 0)], 26)
    assert taken[0] == 100
    assert taken[1:].sum() == 10


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.4])
def test_a_small_share_never_takes_the_only_row_of_a_class(share):
    sizes = [50, 1, 40, 1, 60, 1]
    ids = shuffled_classes(sizes)
    for seed in range(20):
        taken = counts(ids[stratified_sample(ids, round(share * len(ids)), seed)], len(sizes))
        assert taken[[1, 3, 5]].tolist() == [0, 0, 0]
        assert taken.sum() == round(share * len(ids))


def test_the_whole_and_nothing_can_be_sampled():
    ids = shuffled_classes([5, 1, 9])
    assert stratified_sample(ids, len(ids), 0).tolist() == list(range(15))
    assert stratified_sample(ids, 0, 0).tolist() == []


def test_the_seed_chooses_the_rows():
    ids = shuffled_classes([40, 25, 35])
    samples = [tuple(stratified_sample(ids, 30, seed)) for seed in range(20)]
    assert samples == [tuple(stratified_sample(ids, 30, seed)) for seed in range(20)]
    assert len(set(samples)) == 20


@pytest.mark.parametrize("sizes", [[10, 20, 30], [2] * 30, [1] * 60])
def test_every_row_has_the_same_chance(sizes):
    ids = shuffled_classes(sizes)
    hits = sum(counts(stratified_sample(ids, 15, seed), len(ids)) for seed in range(400))
    # 400 draws at 1/4: 100 expected, 8.7 standard deviation.
    assert hits.min() > 60
    assert hits.max() < 140


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_carving_parts_the_rows_without_losing_or_sharing_any(fraction):
    whole = split_of([30, 50, 20])
    rest, share = whole.carved(fraction, seed=0)
    assert len(share) == round(fraction * 100)
    assert sorted([*rest.rows, *share.rows]) == whole.rows.tolist()
    for part in (rest, share):
        assert (np.diff(part.rows) > 0).all()
        assert part.targets.tolist() == whole.targets[part.rows // 2].tolist()
        assert part.table is whole.table
        assert (part.image_column, part.fingerprint) == ("image", "digest of the table")
    assert np.abs(counts(share.targets, 3) - np.array([30, 50, 20]) * fraction).max() <= 1
    assert (rest.name, share.name) == ("train", "validation (from train)")


def test_carving_follows_the_seed():
    whole = split_of([30, 50, 20])
    assert whole.carved(0.2, 1)[1].rows.tolist() == whole.carved(0.2, 1)[1].rows.tolist()
    assert whole.carved(0.2, 1)[1].rows.tolist() != whole.carved(0.2, 2)[1].rows.tolist()


def test_carving_nothing_is_refused_with_the_fraction_and_the_rows():
    with pytest.raises(UserError, match=r"--data\.validation_fraction 0\.01 of 20 images"):
        split_of([10, 10]).carved(0.01, 0)


@pytest.mark.parametrize("most", [None, 100, 1000])
def test_a_limit_that_does_not_bind_leaves_the_split_alone(most):
    whole = split_of([30, 50, 20])
    assert whole.limited(most, 0) is whole


@pytest.mark.parametrize("most", [1, 10, 99])
def test_a_limit_takes_a_stratified_sub_set_of_the_rows(most):
    whole = split_of([30, 50, 20])
    part = whole.limited(most, 0)
    assert len(part) == most
    assert set(part.rows) < set(whole.rows)
    assert (np.diff(part.rows) > 0).all()
    assert part.targets.tolist() == whole.targets[part.rows // 2].tolist()
    assert np.abs(counts(part.targets, 3) - np.array([30, 50, 20]) * most / 100).max() <= 1
    assert part.name == "train"


def test_the_record_names_source_data_and_rows():
    record = split_of([3, 2]).limited(2, 0).record()
    assert record["source"] == "train"
    assert record["fingerprint"] == "digest of the table"
    assert len(record["rows"]) == 2
    assert all(type(row) is int for row in record["rows"])  # as json wants them


def test_classes_are_matched_by_name_not_by_place():
    names, labels = ["ant", "bee", "cat"], ["cat", "dog", "ant", "bee"]
    ids = np.array([0, 1, 2, 2, 0])
    assert [labels[i] for i in matched(names, ids, labels, "test")] == [names[i] for i in ids]


def test_classes_of_the_model_may_be_missing_in_the_data():
    assert matched(["bee"], np.array([0, 0]), ["ant", "bee"], "test").tolist() == [1, 1]


def test_a_declared_class_without_rows_need_not_be_known():
    assert matched(["ant", "yak"], np.array([0, 0]), ["ant", "bee"], "test").tolist() == [0, 0]


def test_classes_unknown_to_the_model_are_named_with_those_it_knows():
    with pytest.raises(UserError) as refusal:
        matched(["ant", "emu", "yak"], np.array([2, 0, 1]), ["ant", "bee"], "validation")
    told = str(refusal.value)
    assert "(2): emu, yak" in told
    assert "emu, yak" in told
    assert "2 classes: ant, bee" in told


def test_a_long_list_of_unknown_classes_is_cut_with_a_count():
    names = [f"class {i:02}" for i in range(30)]
    with pytest.raises(UserError, match=r"\(30\): class 00, .*class 07, \.\.\. \(22 more\)"):
        matched(names, np.arange(30), ["ant"], "test")


PATHS = ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg"]
NAMES = ["ant", "bee"]
IDS = [0, 1, 1]


def digest_of(paths: list[str | None], names: list[str], ids: list[int]) -> str:
    return fingerprint(image_table(paths), "image", names, np.array(ids))


@pytest.mark.parametrize(
    ("paths", "names", "ids"),
    [
        (PATHS, NAMES, [0, 0, 1]),
        (PATHS, ["ant", "cat"], IDS),
        (PATHS, ["bee", "ant"], IDS),
        ([PATHS[0], PATHS[2], PATHS[1]], NAMES, IDS),
        (["photos/z.jpg", *PATHS[1:]], NAMES, IDS),
        ([None, *PATHS[1:]], NAMES, IDS),
        (PATHS[:2], NAMES, IDS[:2]),
        ([*PATHS, "photos/d.jpg"], NAMES, [*IDS, 1]),
    ],
    ids=["label", "class", "order of classes", "order of files", "file name", "no name", "row less", "row more"],
)
def test_the_fingerprint_changes_with_what_is_trained_on(paths, names, ids):
    assert digest_of(paths, names, ids) != digest_of(PATHS, NAMES, IDS)


@pytest.mark.parametrize("folder", ["", "elsewhere/", "/somewhere/deep/down/"])
def test_the_fingerprint_does_not_change_with_the_folders_place(folder):
    moved = [path.replace("photos/", folder) for path in PATHS]
    assert digest_of(moved, NAMES, IDS) == digest_of(PATHS, NAMES, IDS)


@pytest.mark.parametrize("row", [0, 999, 1000, 2499])
def test_the_fingerprint_sees_every_row_of_a_large_table(row):
    paths: list[str | None] = [f"{i}.jpg" for i in range(2500)]
    ids = [0] * 2500
    before = digest_of(paths, NAMES, ids)
    paths[row] = "other.jpg"
    assert digest_of(paths, NAMES, ids) != before


def test_rows_without_names_have_a_fingerprint():
    assert digest_of([None] * 3, NAMES, IDS) == digest_of([None] * 3, NAMES, IDS)
    assert digest_of([None] * 3, NAMES, IDS) != digest_of([None] * 3, NAMES, [1, 1, 1])


def test_a_copied_image_folder_has_the_same_fingerprint_and_a_renamed_file_another(tmp_path):
    draw_split(tmp_path / "here", 3, seed=0)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.copytree(tmp_path / "here", tmp_path / "renamed")
    (tmp_path / "renamed" / "red" / "002.jpg").rename(tmp_path / "renamed" / "red" / "003.jpg")
    tables = [FolderSource(str(tmp_path / name)).load("train") for name in ("here", "there", "renamed")]
    digests = [fingerprint(t, "image", t.features["label"].names, np.array(t["label"])) for t in tables]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
