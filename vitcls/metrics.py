"""The figures that every stage reports, from one place."""

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores
from torchmetrics.utilities import dim_zero_cat

from vitcls.types import TOP


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


def figure_names(stage: str) -> list[str]:
    """What a stage (`train`, `val`, `test`) logs at the end of an epoch."""
    return [f"{stage}/loss", *accuracy_metrics(num_classes=2, prefix=f"{stage}/")]


class StageMetrics(nn.Module):
    """What is measured in one stage: the mean loss and the accuracies.

    Args:
        num_classes: K.
        stage: `train`, `val` or `test`; the figures are called `<stage>/loss`, `<stage>/accuracy` ...
    """

    def __init__(self, num_classes: int, stage: str) -> None:
        super().__init__()
        # Not Lightning's own epoch mean: over two processes it counts 31 images as 2 x 15 (the mean
        # count is kept as an integer), and the loss was 3 % off.
        self.loss = MeanMetric(nan_strategy=float("nan"))  # a NaN stays one
        self.accuracies = accuracy_metrics(num_classes, f"{stage}/")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take a batch in: mean loss () float, logits (B, K) float, labels (B,) int64."""
        self.loss.update(loss.detach(), weight=len(labels))
        self.accuracies.update(logits.detach(), labels)
