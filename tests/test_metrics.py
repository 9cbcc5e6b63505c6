import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from vitcls.metrics import accuracy_metrics

ROUNDING = 1e-6  # float32 against scikit-learn's float64


def figures(logits: np.ndarray, targets: np.ndarray, batches: int = 1) -> dict[str, float]:
    """What the metrics say after that many updates."""
    metrics = accuracy_metrics(logits.shape[1], "val/")
    for part, labels in zip(np.array_split(logits, batches), np.array_split(targets, batches), strict=True):
        metrics.update(torch.from_numpy(part), torch.from_numpy(labels))
    return {name: value.item() for name, value in metrics.compute().items()}


def random_case(seed: int, classes: int, rows: int, occurring: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than by chance; the targets are of `occurring` of the classes."""
    random = np.random.default_rng(seed)
    present = random.permutation(classes)[:occurring]
    targets = random.choice(present, rows)
    logits = random.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), targets] += 1.5
    return logits, targets


def by_scikit_learn(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    return {
        "val/accuracy": accuracy_score(targets, predicted),
        "val/macro_accuracy": balanced_accuracy_score(targets, predicted),
        "val/top5": top_k_accuracy_score(targets, logits, k=5, labels=np.arange(classes)) if classes > 5 else 1.0,
    }


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 10, 37])
@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_scikit_learns(classes, seed):
    logits, targets = random_case(seed, classes, rows=20 * classes)
    assert len(np.unique(targets)) == classes
    assert figures(logits, targets) == pytest.approx(by_scikit_learn(logits, targets), abs=ROUNDING)


# scikit-learn says this in a warning; here it is what the case is about.
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.parametrize("classes", [3, 8, 20])
@pytest.mark.parametrize("seed", range(3))
def test_classes_that_do_not_occur_are_left_out_of_the_mean_even_where_predicted(classes, seed):
    logits, targets = random_case(seed, classes, rows=200, occurring=classes // 2 + 1)
    absent = set(range(classes)) - set(targets)
    assert absent & set(logits.argmax(axis=1))
    assert figures(logits, targets) == pytest.approx(by_scikit_learn(logits, targets), abs=ROUNDING)


def test_a_class_that_neither_occurs_nor_is_predicted_is_left_out_of_the_mean():
    logits, targets = random_case(0, classes=8, rows=100, occurring=5)
    logits[:, sorted(set(range(8)) - set(targets))] = -100
    assert figures(logits, targets) == pytest.approx(by_scikit_learn(logits, targets), abs=ROUNDING)


@pytest.mark.parametrize("batches", [2, 7, 60])
def test_the_cut_into_batches_does_not_matter(batches):
    logits, targets = random_case(4, classes=9, rows=60)
    assert figures(logits, targets, batches) == figures(logits, targets)


def test_rare_classes_weigh_as_much_as_frequent_ones_in_the_macro_accuracy_only():
    logits = np.zeros((100, 6), dtype=np.float32)
    logits[:, 0] = 1  # always class 0, which 99 of 100 rows have
    targets = np.array([0] * 99 + [5])
    found = figures(logits, targets)
    assert found["val/accuracy"] == pytest.approx(0.99)
    assert found["val/macro_accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize("rank", range(10))
def test_top5_counts_the_five_best_classes_and_not_the_sixth(rank):
    logits = np.linspace(1, 0, 10, dtype=np.float32)[None]
    assert figures(logits, np.array([rank]))["val/top5"] == (rank < 5)


def test_a_single_class_is_always_right():
    assert set(figures(np.zeros((4, 1), dtype=np.float32), np.zeros(4, dtype=np.int64)).values()) == {1}


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_top5_of_five_or_fewer_classes_is_always_1(classes):
    logits, targets = random_case(1, classes, rows=50)
    assert figures(logits, targets)["val/top5"] == 1


def test_the_figures_start_anew_after_a_reset():
    wrong, right = np.float32([[0, 1, 0]]), np.float32([[1, 0, 0]])
    metrics = accuracy_metrics(3, "")
    metrics.update(torch.from_numpy(wrong), torch.tensor([0]))
    assert metrics.compute()["macro_accuracy"] == 0
    metrics.reset()
    metrics.update(torch.from_numpy(right), torch.tensor([0]))
    assert {name: value.item() for name, value in metrics.compute().items()} == {
        "accuracy": 1,
        "top5": 1,
        "macro_accuracy": 1,
    }
