"""Every figure of a report against scikit-learn, on cases with ties, missing classes and a single class."""

import json
import tracemalloc

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve

from tests.test_outputs import outputs_of, random_outputs
from vitcls.report.measures import BINS, _intervals, measure

NEAR = {"abs": 1e-6}


def with_ties(outputs):
    return outputs.logits.round()


CASES = {
    "plain": lambda: random_outputs(),
    "ties": lambda: outputs_of(with_ties(random_outputs()), random_outputs().targets),
    "all alike": lambda: outputs_of(np.zeros((30, 4)), np.arange(30) % 4),
    "missing classes": lambda: random_outputs(images=12, classes=9, seed=3),
    "one class occurs": lambda: outputs_of(random_outputs().logits, np.full(60, 2)),
    "two classes": lambda: random_outputs(classes=2),
    "one image": lambda: random_outputs(images=1),
    "sure mistakes": lambda: outputs_of(200 * np.eye(4)[[0, 1, 2, 3]], np.array([1, 1, 2, 3])),
    "many classes": lambda: random_outputs(images=300, classes=101),
}


@pytest.mark.parametrize("case", CASES)
def test_multiclass_figures_are_scikit_learns(case):
    outputs = CASES[case]()
    found, scores, targets = measure(outputs), outputs.probabilities(), outputs.targets
    k, predicted = scores.shape[1], outputs.logits.argmax(axis=1)
    own = np.arange(k)
    assert found["images"] == len(targets)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), **NEAR)
    top = sk.top_k_accuracy_score(targets, outputs.logits, k=5, labels=own) if k > 5 else 1
    assert found[f"top{min(5, k)}"] == pytest.approx(top, **NEAR)
    occurs = np.unique(targets)
    recalls = sk.recall_score(targets, predicted, labels=occurs, average=None, zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean(), **NEAR)
    for average in ("macro", "micro", "weighted"):
        for name in ("precision", "recall", "f1"):
            expected = getattr(sk, f"{name}_score")(targets, predicted, average=average, zero_division=0)
            assert found[f"{name}_{average}"] == pytest.approx(expected, **NEAR), (name, average)
    clipped = np.clip(scores, np.finfo(float).tiny, 1)
    expected = -np.log(clipped[np.arange(len(targets)), targets]).mean()
    assert found["log_loss"] == pytest.approx(expected, **NEAR)
    if case != "sure mistakes":  # scikit-learn clips at another number
        assert found["log_loss"] == pytest.approx(sk.log_loss(targets, scores, labels=own), **NEAR)
    assert found["brier"] == pytest.approx(((scores - np.eye(k)[targets]) ** 2).sum(axis=1).mean(), **NEAR)
    assert found["ece"] == pytest.approx(ece(scores.max(axis=1), predicted == targets), **NEAR)
    plain = outputs.probabilities(temperature=1.0)
    assert found["uncalibrated"]["ece"] == pytest.approx(ece(plain.max(axis=1), predicted == targets), **NEAR)


@pytest.mark.parametrize("case", CASES)
def test_figures_of_classes_are_scikit_learns(case):
    outputs = CASES[case]()
    found, scores, targets = measure(outputs), outputs.probabilities(), outputs.targets
    predicted = outputs.logits.argmax(axis=1)
    defined = {"auroc": [], "average_precision": []}
    for c, label in enumerate(outputs.labels):
        row, has, taken = found["of_classes"][label], targets == c, predicted == c
        assert (row["images"], row["predicted"]) == (has.sum(), taken.sum())
        for name, defined_by in (("precision", taken), ("recall", has), ("f1", has | taken)):
            expected = getattr(sk, f"{name}_score")(has, taken, zero_division=0) if defined_by.any() else None
            assert row[name] == (None if expected is None else pytest.approx(expected, **NEAR))
        auroc = sk.roc_auc_score(has, scores[:, c]) if has.any() and not has.all() else None
        precision = sk.average_precision_score(has, scores[:, c]) if has.any() else None
        for name, expected in (("auroc", auroc), ("average_precision", precision)):
            assert row[name] == (None if expected is None else pytest.approx(expected, **NEAR))
            defined[name] += [] if expected is None else [expected]
    for name, values in defined.items():
        expected = pytest.approx(np.mean(values), **NEAR) if values else None
        assert found[f"{name}_macro"] == expected


def ece(certain, right):
    """By scikit-learn's curve, whose bins are open on the other side: no score of these cases lies on an edge but 1."""
    shares, means = calibration_curve(right, certain, n_bins=BINS)
    counts = np.histogram(certain, bins=np.linspace(0, 1, BINS + 1))[0]
    return float((counts[counts > 0] * np.abs(shares - means)).sum() / len(certain))


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_figures_are_scikit_learns(seed):
    outputs = random_outputs("multilabel", temperature=1.0, seed=seed, classes=5)
    outputs.targets[:, 3] = False
    found, scores, targets = measure(outputs), outputs.probabilities(), outputs.targets
    occurs = targets.any(axis=0)
    each = sk.average_precision_score(targets[:, occurs], scores[:, occurs], average=None)
    assert found["map"] == pytest.approx(each.mean(), **NEAR)
    for average in ("macro", "micro", "weighted"):
        for name, threshold in ((f"f1_{average}", 0.4), (f"f1_{average}_at_half", 0.5)):
            there = (scores >= threshold)[:, occurs]
            expected = sk.f1_score(targets[:, occurs], there, average=average, zero_division=0)
            assert found[name] == pytest.approx(expected, **NEAR)
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(targets, scores >= 0.4), **NEAR)
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(targets, scores >= 0.4), **NEAR)
    losses = [sk.log_loss(targets[:, c], scores[:, c], labels=[False, True]) for c in range(5)]
    assert found["log_loss"] == pytest.approx(np.mean(losses), **NEAR)
    assert found["brier"] == pytest.approx(((scores - targets) ** 2).mean(), **NEAR)
    assert found["of_classes"]["class 3"]["recall"] is None
    assert found["labels_that_occur"] == 4


def test_intervals_hold_the_figure_and_shrink_with_more_images():
    few, many = measure(random_outputs(images=40)), measure(random_outputs(images=4000))
    for name, (low, high) in few["intervals"].items():
        assert low <= few[name] <= high
        width = many["intervals"][name][1] - many["intervals"][name][0]
        assert 0 < width < (high - low) / 5  # ten times narrower, but for chance
    n = 4000
    wilson = 2 * 1.96 * np.sqrt(many["accuracy"] * (1 - many["accuracy"]) / n)
    assert np.ptp(many["intervals"]["accuracy"]) == pytest.approx(wilson, rel=0.1)


def test_one_resample_at_a_time_is_in_memory():
    tracemalloc.start()
    assert _intervals(20_000, {"first": lambda drawn: drawn[0]})["first"][0] > 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 20_000 * 8


def test_what_all_resamples_agree_on_has_no_interval():
    perfect = measure(outputs_of(5 * np.eye(3)[np.arange(9) % 3], np.arange(9) % 3))
    assert "accuracy" not in perfect["intervals"]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_all_of_it_is_json(task):
    json.dumps(measure(random_outputs(task)), allow_nan=False)
