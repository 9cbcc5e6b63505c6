"""What training minimises: the plain loss of the task, and losses for hard images and rare classes."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.errors import UserError, check_range
from vitcls.models.tasks import loss_of
from vitcls.types import Task

_GAMMAS = {"focal": 2.0, "asymmetric": 4.0}  # of the papers' own experiments


@dataclass
class Loss:
    """What training minimises; validation and test measure the plain loss whatever it is.

    Attributes:
        name: `plain`: cross entropy, of multilabel binary cross entropy. `focal` counts what is recognised
            already for less (Lin et al. 2017, arXiv:1708.02002, equation 4). `logit_adjusted`, for rare classes,
            multiclass only: balanced accuracy is learned by adding the classes' frequencies to the logits (Menon
            et al. 2020, arXiv:2007.07314, equation 10). `asymmetric`, multilabel only: absent classes that are
            recognised count for little or nothing (Ridnik et al. 2020, arXiv:2009.14119, equation 7).
        class_weights: `balanced` weighs each image by N / (K * images of its class), of multilabel each
            class that is there by how many more images lack it.
        gamma: of `focal` and `asymmetric`, how much less; not given: 2 and 4.
        tau: of `logit_adjusted`, how much of the logarithm of the frequencies is added.
        margin: of `asymmetric`, the probability up to which an absent class counts nothing.
    """

    name: Literal["plain", "focal", "logit_adjusted", "asymmetric"] = "plain"
    class_weights: Literal["none", "balanced"] = "none"
    gamma: float | None = None
    tau: float = 1.0
    margin: float = 0.05

    def needs_counts(self) -> bool:
        """Whether it depends on how many images each class has."""
        return self.name == "logit_adjusted" or self.class_weights == "balanced"


def check_loss(loss: Loss, task: Task) -> None:
    """Refuse a loss of the other task, and numbers outside of their range.

    Raises:
        UserError: names the option.
    """
    other = {"logit_adjusted": "multilabel", "asymmetric": "multiclass"}.get(loss.name)
    if task == other:
        raise UserError(f"--model.loss.name {loss.name} is not for --model.task {task}; say focal or plain.")
    check_range("model.loss.gamma", loss.gamma, loss.gamma is None or loss.gamma >= 0, "at least 0")
    if loss.gamma is not None and loss.name not in _GAMMAS:
        raise UserError(f"--model.loss.gamma {loss.gamma} is for the losses {' and '.join(_GAMMAS)}; leave it out.")
    check_range("model.loss.margin", loss.margin, 0 <= loss.margin < 1, "at least 0 and below 1")


class TrainingLoss(nn.Module):
    """A loss with what it needs to know of the training data.

    Args:
        loss: which.
        task: the labels are shares that add up to 1, or each in 0..1.
        smoothing: share of the target spread over all classes; of multilabel, over the yes and no of each.
        counts: (K,) images of each class.
        images: N.
    """

    _weights: Tensor
    _shift: Tensor

    def __init__(self, loss: Loss, task: Task, smoothing: float, counts: Tensor, images: int) -> None:
        super().__init__()
        self._loss, self._task, self._smoothing = loss, task, smoothing
        self._gamma = _GAMMAS.get(loss.name, 0.0) if loss.gamma is None else loss.gamma
        counts = counts.double().clamp(min=1)  # of a class without images nothing is learned anyway
        balanced = (images - counts).clamp(min=1) / counts if task == "multilabel" else images / (len(counts) * counts)
        weights = balanced if loss.class_weights == "balanced" else torch.ones_like(counts)
        self.register_buffer("_weights", weights.float(), persistent=False)
        shift = loss.tau * (counts / counts.sum()).log() if loss.name == "logit_adjusted" else torch.zeros_like(counts)
        self.register_buffer("_shift", shift.float(), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) float32 logits and (B,) int64 or (B, K) float32 labels -> (), mean over the batch."""
        if self._loss == Loss():
            return loss_of(self._task, logits, labels, self._smoothing)
        return self._of_several(logits, labels) if self._task == "multilabel" else self._of_one(logits, labels)

    def _of_one(self, logits: Tensor, labels: Tensor) -> Tensor:
        shares = F.one_hot(labels, logits.shape[1]).float() if labels.ndim == 1 else labels
        shares = shares * (1 - self._smoothing) + self._smoothing / logits.shape[1]
        logs = (logits + self._shift).log_softmax(1)
        hard = _power(1 - logs.exp(), self._gamma) if self._gamma else 1.0
        return -(self._weights * hard * shares * logs).sum(1).mean()

    def _of_several(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels * (1 - self._smoothing) + self._smoothing / 2
        there, absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        if self._loss.name == "asymmetric":
            seen = (logits.sigmoid() - self._loss.margin).clamp(min=0)
            return -(self._weights * labels * there + (1 - labels) * _power(seen, self._gamma) * (-seen).log1p()).mean()
        if self._gamma:
            there, absent = there * _power(absent.exp(), self._gamma), absent * _power(there.exp(), self._gamma)
        return -(self._weights * labels * there + (1 - labels) * absent).mean()


def _power(chances: Tensor, gamma: float) -> Tensor:
    """Of probabilities; below 1 an exponent has an infinite gradient at 0."""
    return chances.clamp(min=1e-8) ** gamma


def loss_of_training(loss: Loss, task: Task, smoothing: float, train: Any, classes: int) -> TrainingLoss:
    """The loss that a training minimises.

    Args:
        loss: which one.
        task: of the classifier.
        smoothing: of the labels.
        train: the split that is trained on.
        classes: K.

    Raises:
        UserError: it needs to know how many images each class has, and the split does not tell.
    """
    if not loss.needs_counts():
        counts = torch.ones(classes)
    elif hasattr(train, "class_counts"):
        counts = torch.from_numpy(train.class_counts(classes))
    else:
        raise UserError(
            "--model.loss needs to know how many images each class has, which a stream does not tell; leave "
            "--data.streaming out, or take another loss."
        )
    return TrainingLoss(loss, task, smoothing, counts, len(train))
