"""Every number of a report, from saved outputs; scikit-learn's wherever it has one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score

from vitcls.outputs import Outputs

TOP = 5
BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv:1706.04599) have it
RESAMPLES = 1000  # of the bootstrap
SEED = 0  # of the bootstrap: the same outputs give the same intervals
LOWER_IS_BETTER = ("log_loss", "ece", "brier", "hamming_loss")

Floats = NDArray[np.float64]
Figures = dict[str, Any]


def measure(outputs: Outputs) -> Figures:
    """All figures of a split.

    Args:
        outputs: of at least one image.

    Returns:
        `images`, the figures by name, `intervals` (of the headline ones, 95 %, by bootstrap over the images),
        `of_classes` by label, and the same calibration figures without the temperature as `uncalibrated`. A figure that
        is not defined, such as the AUROC of a class without images, is None and left out of means.
    """
    found = _of_labels(outputs) if outputs.task == "multilabel" else _of_classes(outputs)
    return {"images": len(outputs), **found}


# -- one class for each image ---------------------------------------------------------------


def _of_classes(outputs: Outputs) -> Figures:
    scores, targets = outputs.probabilities(), outputs.targets
    k = len(outputs.labels)
    predicted = outputs.logits.argmax(axis=1)
    each = _of_each_class(targets == np.arange(k)[:, None], predicted == np.arange(k)[:, None], scores.T)
    precision, recall, f1 = _averages(targets, predicted)
    losses = -np.log(np.maximum(scores[np.arange(len(targets)), targets], np.finfo(float).tiny))
    return {
        "accuracy": float(np.mean(predicted == targets)),
        f"top{min(TOP, k)}": float(np.mean(rank_of_target(outputs.logits, targets) < TOP)),
        "balanced_accuracy": balanced_accuracy(targets, predicted, k),
        **{f"{name}_{average}": value for name, of in _named(precision, recall, f1) for average, value in of.items()},
        "auroc_macro": _mean(row["auroc"] for row in each),
        "average_precision_macro": _mean(row["average_precision"] for row in each),
        "log_loss": float(losses.mean()),
        **_calibration(scores, targets, predicted),
        "uncalibrated": _uncalibrated(outputs, predicted),
        "temperature": outputs.temperature,
        "intervals": _intervals(
            len(outputs),
            {
                "accuracy": lambda drawn: np.mean(predicted[drawn] == targets[drawn]),
                "balanced_accuracy": lambda drawn: balanced_accuracy(targets[drawn], predicted[drawn], k),
                "f1_macro": lambda drawn: macro_f1(targets[drawn], predicted[drawn], k),
                "log_loss": lambda drawn: losses[drawn].mean(),
            },
        ),
        "of_classes": dict(zip(outputs.labels, each, strict=True)),
    }


def confusion(targets: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(K, K) int64: images of the class of the row that were taken for that of the column."""
    return np.bincount(targets * k + predicted, minlength=k * k).reshape(k, k)


def balanced_accuracy(targets: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> float:
    """Mean recall over the classes that occur, of (N,) classes each; as scikit-learn's, and fit for a bootstrap."""
    hits, there = (np.bincount(of, minlength=k) for of in (targets[targets == predicted], targets))
    return float(np.mean(hits[there > 0] / there[there > 0]))


def macro_f1(targets: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> float:
    """Mean F1 over the classes that occur or were predicted, of (N,) classes each; as `balanced_accuracy`."""
    hits, there, taken = (np.bincount(of, minlength=k) for of in (targets[targets == predicted], targets, predicted))
    either = there + taken
    return float(np.mean(2 * hits[either > 0] / either[either > 0]))


def rank_of_target(scores: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) int64: how many classes stand before the right one.

    Of equals the one with the larger index stands first, as scikit-learn has it.
    """
    own = scores[np.arange(len(targets)), targets][:, None]
    before = np.arange(scores.shape[1]) > targets[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def _averages(targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[dict[str, float], ...]:
    """Precision, recall and F1, each macro, micro and weighted, over the classes that occur or were predicted."""
    found: tuple[dict[str, float], ...] = ({}, {}, {})
    occurring = np.union1d(targets, predicted)
    for average in ("macro", "micro", "weighted"):
        values = precision_recall_fscore_support(
            targets, predicted, labels=occurring, average=average, zero_division=0.0
        )
        for one, value in zip(found, values, strict=False):
            one[average] = float(value)
    return found


def _named(*values: Any) -> zip:
    return zip(("precision", "recall", "f1"), values, strict=True)


def _uncalibrated(outputs: Outputs, predicted: NDArray[np.int64]) -> Figures:
    scores = outputs.probabilities(temperature=1.0)
    right = scores[np.arange(len(scores)), outputs.targets]
    losses = -np.log(np.maximum(right, np.finfo(float).tiny))
    return {"log_loss": float(losses.mean()), **_calibration(scores, outputs.targets, predicted)}


def _calibration(scores: Floats, targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> Figures:
    certain, right = scores[np.arange(len(scores)), predicted], predicted == targets
    brier = (scores**2).sum(axis=1) - 2 * scores[np.arange(len(scores)), targets] + 1
    return {
        "ece": expected_calibration_error(certain, right),
        "brier": float(np.mean(brier)),
    }


def reliability(certain: Floats, right: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Of equal bins of the score: images (BINS,), their mean score and share of right answers, NaN where empty.

    Args:
        certain: (N,) scores in 0..1.
        right: (N,) bool.
    """
    bins = np.clip(np.ceil(certain * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (
            counts,
            np.bincount(bins, weights=certain, minlength=BINS) / counts,
            np.bincount(bins, weights=right, minlength=BINS) / counts,
        )


def expected_calibration_error(certain: Floats, right: NDArray[np.bool_]) -> float:
    """Mean difference of score and share of right answers over the bins of `reliability`, by their images."""
    counts, scores, shares = reliability(certain, right)
    return float(np.nansum(counts * np.abs(scores - shares)) / len(certain))


# -- any number of labels for each image ------------------------------------------------------


def _of_labels(outputs: Outputs) -> Figures:
    scores, targets = outputs.probabilities(), outputs.targets.astype(bool)
    half, tuned = scores >= 0.5, scores >= outputs.thresholds
    each = _of_each_class(targets.T, tuned.T, scores.T)
    losses = np.logaddexp(0.0, np.where(targets, -1, 1) * outputs.logits.astype(np.float64)).mean(axis=1)
    precision = weighted_precision(targets, scores)
    resampled = {
        "map": lambda drawn: precision(np.bincount(drawn, minlength=len(targets))),
        "f1_macro": lambda drawn: label_f1(targets[drawn], tuned[drawn]),
        "log_loss": lambda drawn: losses[drawn].mean(),
    }
    return {
        "map": _mean(row["average_precision"] for row in each),
        "auroc_macro": _mean(row["auroc"] for row in each),
        **{f"f1_{average}": _f1(targets, tuned, average) for average in ("macro", "micro", "weighted")},
        **{f"f1_{average}_at_half": _f1(targets, half, average) for average in ("macro", "micro", "weighted")},
        "subset_accuracy": float(np.mean((tuned == targets).all(axis=1))),
        "hamming_loss": float(np.mean(tuned != targets)),
        "log_loss": float(losses.mean()),
        "ece": expected_calibration_error(scores.reshape(-1), targets.reshape(-1)),
        "brier": float(np.mean((scores - targets) ** 2)),
        "labels_that_occur": int(targets.any(axis=0).sum()),
        "intervals": _intervals(len(outputs), resampled) if targets.any() else {},
        "of_classes": dict(zip(outputs.labels, each, strict=True)),
    }


def _f1(targets: NDArray[np.bool_], found: NDArray[np.bool_], average: str) -> float | None:
    """Over the labels that occur; None where none does."""
    occurs = targets.any(axis=0)
    if not occurs.any():
        return None
    return float(f1_score(targets[:, occurs], found[:, occurs], average=average, zero_division=0.0))


def label_f1(targets: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Mean F1 of (N, K) decisions over the labels that occur; as scikit-learn's, and fit for a bootstrap."""
    hits, there, taken = ((one).sum(axis=0) for one in (targets & found, targets, found))
    return float(np.mean((2 * hits / np.maximum(there + taken, 1))[there > 0])) if there.any() else float("nan")


def weighted_precision(targets: NDArray[np.bool_], scores: Floats) -> Callable[[NDArray[np.int64]], float]:
    """What gives, for how often each image was drawn, the mean average precision over the labels that occur.

    The images are ranked once for all draws: scikit-learn's own takes a thousand times as long.
    """
    ranked = []
    for has, score in zip(targets.T, scores.T, strict=True):
        order = np.argsort(-score, kind="stable")
        ranked.append((order, has[order], np.flatnonzero(np.append(np.diff(score[order]) != 0, True))))

    def precision(times: NDArray[np.int64]) -> float:
        found = [_average_precision(times[order], has, ends) for order, has, ends in ranked]
        return float(np.mean([one for one in found if one is not None])) if any(found) else float("nan")

    return precision


def _average_precision(times: NDArray[np.int64], has: NDArray[np.bool_], ends: NDArray[np.int64]) -> float | None:
    """Of images in the order of their scores; `ends` are the last of equal scores. None where none has the label."""
    taken, hits = np.cumsum(times)[ends], np.cumsum(times * has)[ends]
    if not hits[-1]:
        return None
    gains = np.diff(hits, prepend=0)
    return float((gains * hits / np.maximum(taken, 1)).sum() / hits[-1])


# -- both -----------------------------------------------------------------------------------


def _of_each_class(targets: NDArray[np.bool_], found: NDArray[np.bool_], scores: Floats) -> list[Figures]:
    """Figures of each of K classes, from (K, N) each: does it have it, was it found, its score."""
    hits = (targets & found).sum(axis=1)
    there, taken = targets.sum(axis=1), found.sum(axis=1)
    auroc = _ranked(targets, scores, roc_auc_score)
    precision = _ranked(targets, scores, average_precision_score)
    return [
        {
            "images": int(there[c]),
            "predicted": int(taken[c]),
            "precision": float(hits[c] / taken[c]) if taken[c] else None,
            "recall": float(hits[c] / there[c]) if there[c] else None,
            "f1": float(2 * hits[c] / (there[c] + taken[c])) if there[c] + taken[c] else None,
            "auroc": auroc[c],
            "average_precision": precision[c],
        }
        for c in range(len(targets))
    ]


def _ranked(targets: NDArray[np.bool_], scores: Floats, figure: Callable[..., float]) -> list[float | None]:
    """Of each class with images a figure of its ranking; AUROC needs images without it as well."""
    need_both = figure is roc_auc_score
    return [
        float(figure(of_class, score)) if of_class.any() and not (need_both and of_class.all()) else None
        for of_class, score in zip(targets, scores, strict=True)
    ]


def _mean(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _intervals(images: int, figures: dict[str, Callable[[NDArray[np.int64]], Any]]) -> dict[str, list[float]]:
    """The middle 95 % of each figure over resamples of the images (Efron 1979), the same for all figures.

    A figure that the resamples agree on, such as an accuracy without a mistake, has none: they cannot tell how far from
    it other images would be.
    """
    random = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(RESAMPLES):
        drawn = random.integers(images, size=images)
        for name, figure in figures.items():
            found[name].append(figure(drawn))
    intervals = {name: np.nanpercentile(values, (2.5, 97.5)).tolist() for name, values in found.items()}
    return {name: [low, high] for name, (low, high) in intervals.items() if low < high}
