"""What follows from the task: the loss, what is measured, the probabilities and the decisions."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.decisions import THRESHOLD
from vitcls.types import PLAIN, Asked, Batch, Predictions, Task


def loss_of(task: Task, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss () float, mean over the batch.

    Args:
        task: multiclass: cross entropy; multilabel: binary cross entropy, mean also over the labels.
        logits: (B, K) float32.
        labels: (B,) int64 or (B, K) float32 shares; multilabel: (B, K) float32 in 0..1.
        smoothing: share of the target spread over all classes; of each label over its yes and no.
    """
    if task == "multiclass":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2)


def mean_logits(task: Task, views: list[Tensor]) -> Tensor:
    """V times (B, K) float32 logits -> the logits (B, K) of their mean probabilities."""
    count = math.log(len(views))
    if task == "multiclass":
        return torch.stack([view.log_softmax(-1) for view in views]).logsumexp(0) - count
    each = torch.stack(views)
    return F.logsigmoid(each).logsumexp(0) - F.logsigmoid(-each).logsumexp(0)


def measured(task: Task, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the metrics take for the logits (B, K) and labels of a batch, mixed or not.

    Returns:
        multiclass: the logits and (B,) int64; multilabel: probabilities (B, K) and (B, K) int64 of 0 and 1.
    """
    if task == "multilabel":
        return logits.sigmoid(), (labels >= 0.5).long()
    return logits, labels if labels.ndim == 1 else labels.argmax(-1)


def thresholds_of(labels: Sequence[str], chosen: Mapping[str, float]) -> Tensor:
    """(K,) float64: of each label the one chosen for its name, else 0.5."""
    return torch.tensor([chosen.get(label, THRESHOLD) for label in labels], dtype=torch.float64)


def probabilities_of(task: Task, logits: Tensor) -> Tensor:
    """Logits (B, K) float32 -> probabilities (B, K) in 0..1; multiclass: those of an image add up to 1."""
    return logits.softmax(-1) if task == "multiclass" else logits.sigmoid()


def predictions_of(
    task: Task,
    logits: Tensor,
    thresholds: Tensor,
    batch: Batch,
    asked: Asked = PLAIN,
    embeddings: Tensor | None = None,
) -> Predictions:
    """The best classes of each image; multilabel: also all that reach their threshold.

    Args:
        task: multiclass: the probabilities of an image add up to 1.
        logits: (B, K) float32.
        thresholds: (K,) float64 in 0..1, on the CPU.
        batch: the images.
        asked: how many classes, and what else.
        embeddings: (B, F) float32, where they are asked for.
    """
    probabilities = probabilities_of(task, logits)
    best = probabilities.topk(min(asked.top, logits.shape[-1]))
    return Predictions(
        ids=batch["ids"],
        scores=best.values,
        classes=best.indices,
        present=probabilities.cpu().double() >= thresholds if task == "multilabel" else None,
        probabilities=probabilities if asked.scores else None,
        embeddings=embeddings,
        bad=batch["bad"],
    )
