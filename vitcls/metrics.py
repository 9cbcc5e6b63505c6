"""The figures that every stage reports, from one place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassStatScores,
    MultilabelAccuracy,
    MultilabelF1Score,
    MultilabelPrecisionRecallCurve,
    MultilabelStatScores,
)
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from vitcls.calibration import BestTemperature
from vitcls.decisions import THRESHOLD
from vitcls.types import TOP, Task


class BalancedAccuracy(MulticlassStatScores):
    """Mean recall over the classes that occur in the targets, in 0..1.

    torchmetrics' macro accuracy counts a class that was predicted but does not occur as recall 0; a
    small validation set without some class would be punished for it. This is scikit-learn's
    `balanced_accuracy_score`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, average=None, validate_args=False)

    def compute(self) -> Tensor:
        """The mean recall, a float32 scalar."""
        found, missed = dim_zero_cat(self.tp).float(), dim_zero_cat(self.fn).float()
        occurs = found + missed > 0
        return (found[occurs] / (found + missed)[occurs]).mean()


def accuracy_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """`accuracy`, `top5` and `macro_accuracy` under a prefix such as `val/`.

    Args:
        num_classes: K; with fewer than five, top5 is top-K and always 1.
        prefix: put before each name.

    Each takes logits (B, K) float and labels (B,) int64, and is exact over any number of processes.
    """
    top5 = MulticlassAccuracy(num_classes, top_k=min(TOP, num_classes), average="micro", validate_args=False)
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "top5": top5,
        "macro_accuracy": BalancedAccuracy(num_classes),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class MeanF1(MultilabelStatScores):
    """Mean F1 over the labels that occur in the targets, at a threshold of 0.5, in 0..1."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, THRESHOLD, average=None, validate_args=False)

    def compute(self) -> Tensor:
        """The mean F1, a float32 scalar."""
        hits, missed, false = (dim_zero_cat(state).float() for state in (self.tp, self.fn, self.fp))
        occurs = hits + missed > 0
        return (2 * hits[occurs] / (2 * hits + missed + false)[occurs]).mean()


class MeanAveragePrecision(MultilabelPrecisionRecallCurve):
    """Mean over the labels that occur of scikit-learn's `average_precision_score`, in 0..1.

    Exact, so it keeps the probabilities of all images: (N, K) float32.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean, a float32 scalar; NaN where no label occurs at all."""
        probabilities, targets = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        occurs = targets.any(dim=0)
        count = int(occurs.sum())
        if not count:
            return torch.tensor(float("nan"), device=targets.device)
        kept = probabilities[:, occurs], targets[:, occurs]
        return multilabel_average_precision(*kept, count, average=None, validate_args=False).mean()


class BestThresholds(MultilabelPrecisionRecallCurve):
    """Of each label the threshold at which its F1 is highest; 0.5 for those that do not occur."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        """(K,) float64: midway between the last probability above and the first below, for `>=`."""
        return best_thresholds(dim_zero_cat(self.preds).cpu().double(), dim_zero_cat(self.target).cpu())


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Probabilities (N, K) float64 and targets (N, K) of 0 and 1 -> thresholds (K,) float64."""
    ranked, order = probabilities.sort(dim=0, descending=True)
    hits = targets.gather(0, order).cumsum(dim=0)
    taken = torch.arange(1, len(ranked) + 1)[:, None]
    f1 = 2 * hits / (taken + hits[-1:])
    below = torch.cat([ranked[1:], torch.zeros_like(ranked[:1])])
    f1[ranked == below] = -1  # no threshold parts equals
    best = f1.argmax(dim=0, keepdim=True)
    midway = (ranked.gather(0, best) + below.gather(0, best)) / 2
    return torch.where(hits[-1] > 0, midway[0], THRESHOLD)


def label_metrics(num_labels: int, prefix: str, ranked: bool = True) -> MetricCollection:
    """`accuracy`, `f1` and `map` under a prefix such as `val/`.

    Args:
        num_labels: K.
        prefix: put before each name.
        ranked: with `map`, which keeps all probabilities of an epoch.

    Each takes probabilities (B, K) float and labels (B, K) int64 of 0 and 1, and is exact over any
    number of processes. The accuracy is the share of right decisions, N x K of them, at 0.5.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MultilabelAccuracy(num_labels, THRESHOLD, average="micro", validate_args=False),
        "f1": MeanF1(num_labels),
    }
    if ranked:
        metrics["map"] = MeanAveragePrecision(num_labels)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def stage_metrics(task: Task, num_classes: int, stage: str) -> MetricCollection:
    """The figures of a stage (`train`, `val`, `test`), besides its loss."""
    if task == "multiclass":
        return accuracy_metrics(num_classes, f"{stage}/")
    return label_metrics(num_classes, f"{stage}/", ranked=stage != "train")


def figure_names(stage: str, task: Task = "multiclass") -> list[str]:
    """What a stage (`train`, `val`, `test`) logs at the end of an epoch."""
    return [f"{stage}/loss", *stage_metrics(task, num_classes=2, stage=stage)]


class StageMetrics(nn.Module):
    """What is measured in one stage: the mean loss and the figures of the task.

    Args:
        task: multiclass or multilabel.
        num_classes: K.
        stage: `train`, `val` or `test`; the figures are called `<stage>/loss`, `<stage>/accuracy` ...
    """

    def __init__(self, task: Task, num_classes: int, stage: str) -> None:
        super().__init__()
        self._stage = stage
        # Not Lightning's own epoch mean: over two processes it counts 31 images as 2 x 15 (the mean
        # count is kept as an integer), and the loss was 3 % off.
        self.loss = MeanMetric(nan_strategy=float("nan"))  # a NaN stays one
        self.figures = stage_metrics(task, num_classes, stage)
        self._of_labels = MetricCollection(_of_labels(task, num_classes, stage), compute_groups=False)
        self._temperature = BestTemperature() if (task, stage) == ("multiclass", "val") else None

    def update(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Take a batch in.

        Args:
            loss: () float, mean over the batch.
            scores: (B, K) float logits; multilabel: probabilities, since torchmetrics would take a batch
                of logits that happen to lie in 0..1 for such.
            labels: (B,) int64; multilabel: (B, K) int64 of 0 and 1.
        """
        loss, weight = loss.detach(), torch.full((), float(len(labels)), device=loss.device)
        if self._stage == "train":  # a step whose loss is not finite is left out, and counted elsewhere
            loss, weight = loss.nan_to_num(0.0, 0.0, 0.0), weight * loss.isfinite()
        self.loss.update(loss, weight=weight)
        self.figures.update(scores.detach(), labels)
        if self._of_labels:
            self._of_labels.update(scores.detach(), labels)
        if self._temperature is not None:
            self._temperature.update(scores.detach(), labels)

    def take_of_labels(self, labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """Figures of each label by name, over all processes, since the last call: `f1`, of `val` also `threshold`.

        Empty for multiclass, and where nothing was measured.
        """
        if not any(metric.update_called for metric in self._of_labels.values()):
            return {}
        found = self._of_labels.compute()
        self._of_labels.reset()
        return {name: dict(zip(labels, values.tolist(), strict=True)) for name, values in found.items()}

    def take_temperature(self) -> float:
        """The temperature that suits what was measured since the last call, over all processes.

        1 where nothing was measured, and for multilabel, which has thresholds.
        """
        if self._temperature is None or not self._temperature.update_called:
            return 1.0
        found = float(self._temperature.compute())
        self._temperature.reset()
        return found


def _of_labels(task: Task, num_labels: int, stage: str) -> dict[str, Any]:
    if task == "multiclass" or stage == "train":
        return {}
    f1 = {"f1": MultilabelF1Score(num_labels, THRESHOLD, average=None, validate_args=False)}
    return {**f1, "threshold": BestThresholds(num_labels)} if stage == "val" else f1
