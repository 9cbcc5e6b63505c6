"""The figures of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from vitcls.drawing import COLOURS, INK, SERIES, plain
from vitcls.outputs import Outputs
from vitcls.report.history import Curve
from vitcls.report.measures import BINS, confusion, reliability

NAMED_CELLS = 25  # classes up to which each cell of the confusion matrix has its number
NAMED_CLASSES = 110  # up to which each row has its name; of more, the most confused are shown
MOST_CONFUSED = 50
CURVES = len(SERIES)  # classes up to which each has its own ROC and precision-recall curve, and its own colour
DECISIONS = 2_000_000  # from which up the curve of all classes together is drawn of some images, evenly chosen
STYLES = ("-", "--", ":")  # of more runs than there are colours
POINTS = 400  # of a curve: as many as an eye can tell apart


def learning_curves(curves: Mapping[str, Curve], monitor: str, kept_step: int | None) -> Figure:
    """Loss and the figure that was chosen by, of training and validation, over the optimiser steps.

    Args:
        curves: by name.
        monitor: such as `val/accuracy`; of `val/loss`, or of none, accuracy is shown beside the loss.
        kept_step: of the weights that were kept, drawn as a line.
    """
    figure = Figure((9, 3.2))
    chosen_by = monitor.partition("/")[2]
    shown = ["loss", chosen_by if chosen_by not in ("", "loss") else "accuracy"]
    for axes, name in zip(figure.subplots(1, 2), shown, strict=True):
        for stage, role in (("train", "train"), ("val", "validation")):
            points = curves.get(f"{stage}/{name}", [])
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[role], label=role, marker=".", markersize=4)
        if kept_step is not None:
            axes.axvline(kept_step, color=INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="optimiser steps (dotted: the weights that were kept)", ylabel=name)
        if axes.get_lines():
            axes.legend(frameon=False)
    return figure


def confusion_matrix(outputs: Outputs) -> Figure:
    """Shares of each class (row) that were taken for each class (column); of many classes, the most confused."""
    k = len(outputs.labels)
    counts = confusion(outputs.targets, outputs.logits.argmax(axis=1), k)
    chosen = np.arange(k) if k <= NAMED_CLASSES else most_confused(counts)
    names = [_short(outputs.labels[c]) for c in chosen]
    there = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = (counts / there)[np.ix_(chosen, chosen)]
    side = float(np.clip(0.42 * len(names), 3, 7.5)) if len(names) <= NAMED_CELLS else 0.13 * len(names) + 1
    longest = max(map(len, names))
    figure = Figure((side + 0.09 * longest + 1, side + 0.09 * longest))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))  # a mistake in a hundred shows
    size = 9 if len(names) <= NAMED_CELLS else 6.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="answer", ylabel="label")
    axes.spines[:].set_visible(False)
    if len(names) <= NAMED_CELLS:
        _write_cells(axes, counts[np.ix_(chosen, chosen)], shares)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the label's images")
    return figure


def most_confused(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The classes with the most mistakes from and to them, in the order of their names' indices."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    return np.sort(order[:MOST_CONFUSED])


def _write_cells(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[row, column] > 0.3 else "#333333"
        size = 8 if len(counts) <= 12 else 6
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=size)


def _short(name: str) -> str:
    return plain(name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}")


def reliability_diagram(outputs: Outputs) -> Figure:
    """Share of right answers over the score, with and without the temperature, and how many images have which score.

    Of multilabel data, over the score of each label the share of images that have it.
    """
    figure = Figure((9, 3.6))
    left, right = figure.subplots(1, 2)
    edges = np.linspace(0, 1, BINS + 1).tolist()
    left.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    several = outputs.task == "multilabel"
    views = [(outputs.temperature, f"temperature {outputs.temperature:.2f}")]
    if several:
        views = [(1.0, "labels")]
    elif outputs.temperature != 1:
        views.insert(0, (1.0, "without"))
    for colour, (temperature, name) in zip(SERIES, views, strict=False):
        score, is_right = _answers(outputs, temperature)
        _, means, shares = reliability(score, is_right)
        left.plot(means, shares, color=colour, marker="o", markersize=4, label=name)
        right.hist(score, bins=edges, histtype="step", color=colour, label=name)
    score_of, share_of = ("a label", "labels that are there") if several else ("the answer", "right answers")
    left.set(xlabel=f"score of {score_of}", ylabel=f"share of {share_of}", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel=f"score of {score_of}", ylabel="labels" if several else "answers", xlim=(0, 1))
    left.legend(frameon=False)
    return figure


def _answers(outputs: Outputs, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores = outputs.probabilities(temperature)
    if outputs.task == "multilabel":
        return scores.reshape(-1), outputs.targets.reshape(-1).astype(bool)
    best = scores.argmax(axis=1)
    return scores[np.arange(len(scores)), best], best == outputs.targets


def score_histograms(outputs: Outputs) -> Figure:
    """How sure the right and the wrong answers are; of multilabel data, the labels that are there and that are not."""
    score, is_right = _answers(outputs, outputs.temperature)
    figure = Figure((9, 3))
    axes = figure.subplots()
    names = ("there", "not there") if outputs.task == "multilabel" else ("right", "wrong")
    edges = np.linspace(0, 1, 41).tolist()
    for colour, name, of_kind in ((SERIES[2], names[0], is_right), (SERIES[4], names[1], ~is_right)):
        axes.hist(score[of_kind], bins=edges, color=colour, alpha=0.6, label=f"{name} ({of_kind.sum():,})")
    axes.set(xlabel="score", ylabel="labels" if outputs.task == "multilabel" else "answers", xlim=(0, 1))
    if len(score) > 500:
        axes.set_yscale("symlog", linthresh=10)
    axes.legend(frameon=False)
    return figure


def ranking_curves(outputs: Outputs) -> Figure:
    """ROC and precision over recall: of each class where they are few, and of all decisions together."""
    scores = outputs.probabilities()
    k = scores.shape[1]
    targets = outputs.targets.astype(bool) if outputs.task == "multilabel" else np.eye(k, dtype=bool)[outputs.targets]
    figure = Figure((9, 4))
    roc, precision = figure.subplots(1, 2)
    for c in range(k if k <= CURVES else 0):
        has, score = targets[:, c], scores[:, c]
        if has.any() and not has.all():
            _ranked(roc, precision, has, score, color=SERIES[c], linewidth=1, label=_short(outputs.labels[c]))
    some = np.unique(np.linspace(0, len(scores) - 1, max(1, DECISIONS // k)).astype(int))
    has, score = targets[some].reshape(-1), scores[some].reshape(-1)
    if has.any() and not has.all():
        _ranked(roc, precision, has, score, color=INK, linewidth=2, label="all classes together")
    roc.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    roc.set(xlabel="share of others taken for it", ylabel="share of it that is found", xlim=(0, 1), ylim=(0, 1.02))
    precision.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if precision.get_legend_handles_labels()[1]:
        lines = precision.get_legend_handles_labels()
        # Below both: inside of one it would lie over its curves.
        figure.legend(*lines, frameon=False, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0))
    return figure


def _ranked(roc: Axes, precision: Axes, has: NDArray[np.bool_], score: NDArray[np.float64], **how: Any) -> None:
    false, true, _ = roc_curve(has, score)
    roc.plot(*_thinned(false, true), **how)
    precise, recall, _ = precision_recall_curve(has, score)
    precision.plot(*_thinned(recall, precise), **how)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a curve in equal steps along it: of many decisions nearly all are in one of its corners."""
    way = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    kept = np.unique(np.append(np.searchsorted(way, np.linspace(0, way[-1], POINTS)), len(x) - 1))
    return x[kept], y[kept]


def compared_curves(curves: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> Figure:
    """The same figures of several runs over one another.

    Args:
        curves: of each run, by its name.
        names: of the figures, one panel each.
    """
    figure = Figure((9, 3.4))
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for number, (run, of_run) in enumerate(curves.items()):
            points = of_run.get(name, [])
            if points:
                colour, style = SERIES[number % len(SERIES)], STYLES[number // len(SERIES) % len(STYLES)]
                look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": ".", "markersize": 4}
                axes.plot(*zip(*points, strict=True), label=plain(run), **look)
        axes.set(xlabel="optimiser steps", ylabel=name)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=8)
    return figure
