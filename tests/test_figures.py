"""The figures of a report: what is drawn is what was measured."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score

from tests.test_outputs import random_outputs
from vitcls.drawing import SERIES
from vitcls.report.figures import POINTS, compared_curves, ranking_curves, reliability_diagram


@pytest.mark.parametrize("classes", [4, 101, 500])
def test_curves_of_many_decisions_keep_their_shape(classes):
    """Of 500 classes 1 decision in 500 is a yes, and they are all at the end of the ranking."""
    outputs = random_outputs(images=400, classes=classes)
    roc, precision = ranking_curves(outputs).axes
    has, score = np.eye(classes, dtype=bool)[outputs.targets].reshape(-1), outputs.probabilities().reshape(-1)
    (drawn,) = [line for line in precision.lines if line.get_label() == "all classes together"]
    recall, precise = drawn.get_data()
    assert auc(recall, precise) == pytest.approx(average_precision_score(has, score), abs=0.01)
    assert all(len(line.get_xdata()) <= POINTS + 1 for line in [*roc.lines, *precision.lines])


@pytest.mark.parametrize("classes", [len(SERIES), len(SERIES) + 1])
def test_no_two_classes_look_alike(classes):
    for axes in ranking_curves(random_outputs(images=200, classes=classes)).axes:
        colours = [line.get_color() for line in axes.lines if line.get_linewidth() == 1]
        assert len(set(colours)) == len(colours) == (classes if classes <= len(SERIES) else 0)


@pytest.mark.parametrize(("task", "says"), [("multiclass", "right answers"), ("multilabel", "labels that are there")])
def test_a_reliability_diagram_says_what_its_shares_are_of(task, says):
    left, _ = reliability_diagram(random_outputs(task, temperature=1.0)).axes
    assert left.get_ylabel() == f"share of {says}"


def test_no_two_runs_look_alike():
    curves = {f"run {n}": {"val/loss": [(1, 0.5), (2, 0.4)]} for n in range(20)}
    (axes,) = compared_curves(curves, ["val/loss"]).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20
