"""The temperature, against a minimiser of its own, and over processes."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from vitcls.calibration import RANGE, BestTemperature
from vitcls.metrics import StageMetrics


def answers(images, classes, scale, seed=0):
    """Logits that are `scale` times those by which the labels were drawn."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=random)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0]
    return scale * logits, labels


def found(logits, labels, batch=32):
    metric = BestTemperature()
    for start in range(0, len(labels), batch):
        metric.update(logits[start : start + batch], labels[start : start + batch])
    return float(metric.compute())


def by_scipy(logits, labels):
    doubt = 1 / (len(labels) + 2)
    k = logits.shape[1]
    targets = np.full(logits.shape, doubt / (k - 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature):
        scores = (logits.double() / np.exp(log_temperature)).log_softmax(-1).numpy()
        return -(targets * scores).sum(axis=1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-2.3, 2.3), method="bounded", options={"xatol": 1e-8}).x))


@pytest.mark.parametrize("classes", [2, 5, 101])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_it_is_where_the_log_loss_is_smallest(classes, scale):
    logits, labels = answers(400, classes, scale)
    assert found(logits, labels) == pytest.approx(by_scipy(logits, labels), rel=2e-3)


def test_it_undoes_what_scaled_the_logits():
    assert found(*answers(20_000, 5, 3.0)) == pytest.approx(3.0, rel=0.05)


def test_a_few_right_answers_do_not_make_certainty():
    logits = 4 * torch.eye(3)
    assert 0.3 < found(logits, torch.arange(3)) < 3  # the log loss itself is smallest at 0


def test_the_sums_of_two_processes_are_those_of_one():
    logits, labels = answers(101, 4, 2.0)
    one, other, both = BestTemperature(), BestTemperature(), BestTemperature()
    both.update(logits, labels)
    one.update(logits[:37], labels[:37])
    other.update(logits[37:], labels[37:])
    for name in ("spread", "right", "others", "count"):
        setattr(one, name, getattr(one, name) + getattr(other, name))
    assert float(one.compute()) == pytest.approx(float(both.compute()), rel=1e-4)


def test_of_nothing_it_is_1_and_it_is_taken_once():
    metrics = StageMetrics("multiclass", 3, "val")
    assert metrics.take_temperature() == 1
    logits, labels = answers(50, 3, 4.0)
    metrics.update(torch.tensor(0.5), logits, labels)
    assert metrics.take_temperature() == pytest.approx(found(logits, labels), rel=1e-4)
    assert metrics.take_temperature() == 1
    for task, stage in (("multiclass", "test"), ("multiclass", "train"), ("multilabel", "val")):
        assert StageMetrics(task, 3, stage).take_temperature() == 1


def test_it_stays_within_its_range():
    metric = BestTemperature()
    metric.update(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 1e3, torch.arange(50) % 3)
    assert float(metric.compute()) == pytest.approx(RANGE)
