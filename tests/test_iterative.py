import numpy as np
import pytest

from vitcls.data.iterative import iterative_sample


def random_targets(rows: int, labels: int, most: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((rows, labels)) < random.random(labels) * most


def errors(targets: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Of each label, how many of its rows the sample has too many or too few."""
    return np.abs(targets[sample].sum(axis=0) - targets.sum(axis=0) * len(sample) / len(targets))


CASES = [(160, 3, 0.8), (400, 12, 0.3), (1000, 50, 0.05), (60, 2, 0.1)]


@pytest.mark.parametrize(("rows", "labels", "most"), CASES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_a_sample_has_the_count_and_no_row_twice(rows, labels, most, share):
    sample = iterative_sample(random_targets(rows, labels, most, seed=1), round(share * rows), seed=0)
    assert len(sample) == round(share * rows)
    assert (np.diff(sample) > 0).all()


@pytest.mark.parametrize(("rows", "labels", "most"), CASES[:3])
def test_labels_keep_their_share_much_closer_than_by_chance(rows, labels, most):
    targets = random_targets(rows, labels, most, seed=2)
    count = rows // 5
    ours = np.mean([errors(targets, iterative_sample(targets, count, seed)) for seed in range(20)])
    chance = [np.random.default_rng(seed).permutation(rows)[:count] for seed in range(20)]
    assert ours < 0.45 * np.mean([errors(targets, sample) for sample in chance])


def test_the_rarest_labels_keep_theirs_within_one_row():
    targets = random_targets(1000, 20, 0.4, seed=3)
    targets[:, :3] = False
    for label, rows in enumerate((10, 20, 30)):
        targets[np.random.default_rng(label).permutation(1000)[:rows], label] = True
    for seed in range(10):
        assert errors(targets, iterative_sample(targets, 200, seed))[:3].max() <= 1


def test_rows_without_a_label_fill_the_count():
    targets = np.zeros((50, 2), dtype=bool)
    targets[:10] = True
    sample = iterative_sample(targets, 10, seed=0)
    assert (sample < 10).sum() == 2
    assert (sample >= 10).sum() == 8


def test_the_seed_chooses_the_rows():
    targets = random_targets(100, 5, 0.5, seed=4)
    samples = [tuple(iterative_sample(targets, 20, seed)) for seed in range(20)]
    assert samples == [tuple(iterative_sample(targets, 20, seed)) for seed in range(20)]
    assert len(set(samples)) == 20


def test_the_only_row_of_a_label_stays_with_the_larger_part():
    targets = np.zeros((40, 3), dtype=bool)
    targets[[3, 17, 31], [0, 1, 2]] = True
    for seed in range(10):
        assert not {3, 17, 31} & set(iterative_sample(targets, 8, seed))
