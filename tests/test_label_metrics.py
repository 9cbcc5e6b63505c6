"""The figures of several labels for an image, against scikit-learn's."""

import socket

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from vitcls.metrics import BestThresholds, StageMetrics, label_metrics
from vitcls.models.tasks import loss_of, mean_logits, predictions_of, thresholds_of
from vitcls.types import Batch

ROUNDING = 1e-6  # float32 against scikit-learn's float64


def random_case(seed: int, labels: int, rows: int, absent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, some of them equal, and targets; the first `absent` labels do not occur."""
    random = np.random.default_rng(seed)
    targets = random.random((rows, labels)) < random.uniform(0.05, 0.7, labels)
    targets[:, :absent] = False
    targets[0, absent:] = True
    raw = random.normal(size=(rows, labels)) + 1.2 * targets - 0.5
    return (1 / (1 + np.exp(-raw))).astype(np.float32).round(2), targets.astype(np.int64)


def figures(probabilities: np.ndarray, targets: np.ndarray, batches: int = 1) -> dict[str, float]:
    metrics = label_metrics(targets.shape[1], "")
    for part, labels in zip(np.array_split(probabilities, batches), np.array_split(targets, batches), strict=True):
        metrics.update(torch.from_numpy(part), torch.from_numpy(labels))
    return {name: value.item() for name, value in metrics.compute().items()}


def by_scikit_learn(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    occurs = np.flatnonzero(targets.any(axis=0))
    said = probabilities > 0.5
    return {
        "accuracy": (said == targets).mean(),
        "f1": np.mean([f1_score(targets[:, k], said[:, k], zero_division=0) for k in occurs]),
        "map": np.mean([average_precision_score(targets[:, k], probabilities[:, k]) for k in occurs]),
    }


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize("labels", [3, 8, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_scikit_learns_over_the_labels_that_occur(seed, labels, absent):
    case = random_case(seed, labels, rows=150, absent=absent)
    for batches in (1, 7):
        assert figures(*case, batches) == pytest.approx(by_scikit_learn(*case), abs=ROUNDING)


def test_without_any_label_there_is_no_average_precision():
    probabilities, targets = random_case(0, 4, rows=20, absent=4)
    assert np.isnan(figures(probabilities, np.zeros_like(targets))["map"])


def test_the_thresholds_are_where_scikit_learns_curve_has_the_highest_f1():
    probabilities, targets = random_case(5, 12, rows=200, absent=1)
    metric = BestThresholds(12)
    metric.update(torch.from_numpy(probabilities), torch.from_numpy(targets))
    found = metric.compute().numpy()
    assert found[0] == 0.5
    for k in range(1, 12):
        precision, recall, _ = precision_recall_curve(targets[:, k], probabilities[:, k])
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        assert f1_score(targets[:, k], probabilities[:, k] >= found[k]) == pytest.approx(best)
        assert not (probabilities[:, k] == np.float32(found[k])).any(), "midway between two images"


def test_the_figures_of_labels_are_taken_once_and_have_thresholds_only_in_validation():
    probabilities, targets = map(torch.from_numpy, random_case(1, 3, rows=50))
    val, test, train, one = (StageMetrics("multilabel", 3, stage) for stage in ("val", "test", "train", "val"))
    for metrics in (val, test, train):
        metrics.update(torch.tensor(0.5), probabilities, targets)
    found = val.take_of_labels(["a", "b", "c"])
    expected = f1_score(targets, probabilities > 0.5, average=None)
    assert found["f1"] == pytest.approx(dict(zip("abc", expected, strict=True)), abs=ROUNDING)
    assert list(found["threshold"]) == ["a", "b", "c"]
    assert list(test.take_of_labels(["a", "b", "c"])) == ["f1"]
    assert val.take_of_labels(["a", "b", "c"]) == train.take_of_labels(["a"]) == one.take_of_labels(["a"]) == {}
    assert "map" not in {name.removeprefix("train/") for name in train.figures}


def measure_share(rank: int, port: int, case: tuple[np.ndarray, np.ndarray], folder: str) -> None:
    """What process `rank` of two says after the images of its own; the first has one more."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    probabilities, targets = (torch.from_numpy(part[rank::2]) for part in case)
    metrics = StageMetrics("multilabel", targets.shape[1], "val")
    metrics.update(torch.tensor(0.5), probabilities, targets)
    found = {name.removeprefix("val/"): value.item() for name, value in metrics.figures.compute().items()}
    torch.save((found, metrics.take_of_labels([str(k) for k in range(targets.shape[1])])), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_figures_of_one(tmp_path):
    case = random_case(2, 5, rows=31)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, for to import everything takes seconds.
    torch.multiprocessing.start_processes(measure_share, (port, case, str(tmp_path)), nprocs=2, start_method="fork")
    alone = StageMetrics("multilabel", 5, "val")
    alone.update(torch.tensor(0.5), *map(torch.from_numpy, case))
    of_labels = alone.take_of_labels([str(k) for k in range(5)])
    for rank in range(2):
        found, found_of_labels = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(by_scikit_learn(*case), abs=ROUNDING)
        assert found_of_labels == of_labels


def test_the_loss_is_binary_cross_entropy_and_smoothing_moves_towards_a_half():
    logits, labels = torch.tensor([[0.3, -2.0], [4.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = logits.sigmoid()
    for smoothing in (0.0, 0.2):
        wanted = labels * (1 - smoothing) + (1 - labels) * 0 + smoothing / 2
        expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
        torch.testing.assert_close(loss_of("multilabel", logits, labels, smoothing), expected)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_views_have_the_logits_of_their_mean_probability(task):
    views = list(5 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0)))
    activate = torch.sigmoid if task == "multilabel" else lambda logits: logits.softmax(-1)
    expected = torch.stack([activate(view) for view in views]).mean(0)
    torch.testing.assert_close(activate(mean_logits(task, views)), expected)


def test_views_that_are_certain_stay_finite():
    certain = [torch.tensor([[200.0, -200.0]])] * 2
    torch.testing.assert_close(mean_logits("multilabel", certain), certain[0])


def test_a_label_is_there_from_its_threshold_on():
    batch = Batch(pixel_values=torch.empty(2), labels=torch.empty(0), ids=torch.arange(2), bad=[])
    logits = torch.tensor([[0.0, 0.0, 0.0], [3.0, -3.0, 0.0]])
    found = predictions_of("multilabel", logits, thresholds_of(["a", "b", "c"], {"a": 0.9, "b": 0.01}), batch)
    assert found["present"].tolist() == [[False, True, True], [True, True, True]]
    assert found["classes"][1].tolist() == [0, 2, 1]
    torch.testing.assert_close(found["scores"][1], logits[1].sigmoid()[[0, 2, 1]])
