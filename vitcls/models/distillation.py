"""Distillation: what a student learns from a teacher, besides the labels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name for it

from vitcls.data.preprocess import ImageSpec
from vitcls.errors import UserError, check_range
from vitcls.models.features import feature_width
from vitcls.models.teacher import Teacher, load_teacher
from vitcls.types import Task


@dataclass
class Distill:
    """Learn from a larger classifier; only training needs it, validation and test measure the plain loss.

    It sees the same views as the student, mixed ones too, with a mean, std and size of its own (a patient teacher,
    Beyer et al. 2022, arXiv:2106.05237, section 3); each step costs its forward pass.

    Attributes:
        teacher: trained on the same classes, matched by name: run folder, .ckpt, transformers folder or Hub id.
        revision: of the Hub repository.
        temperature: T that softens the probabilities of both, above 0 (Hinton et al. 2015, arXiv:1503.02531,
            section 2).
        weight: of the soft targets, in 0..1; the labels' loss has the rest. 0: the teacher's classes do not matter.
        features: how much the features that go into the head count besides (1 - cosine between the teacher's and a
            trained linear projection of the student's, which `model/` does not keep; after FitNets, Romero et al.
            2014, arXiv:1412.6550, section 2.1), at least 0.
    """

    teacher: str
    revision: str | None = None
    temperature: float = 2.0
    weight: float = 0.5
    features: float = 0.0


def check_distill(said: Distill) -> None:
    """Refuse numbers outside of their range, and a teacher that would teach nothing.

    Raises:
        UserError: names the option.
    """
    check_range("model.distill.temperature", said.temperature, said.temperature > 0, "above 0")
    check_range("model.distill.weight", said.weight, 0 <= said.weight <= 1, "between 0 and 1")
    check_range("model.distill.features", said.features, said.features >= 0, "at least 0")
    if not said.weight and not said.features:
        raise UserError(
            "--model.distill.weight 0 and --model.distill.features 0 leave nothing to learn from the teacher; raise "
            "one of them, or set --model.distill to null."
        )


def soft_loss(task: Task, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T**2 times the Kullback-Leibler divergence of softened probabilities: (), mean over the batch.

    The square keeps its gradient as large as that of the labels' loss (Hinton et al. 2015, section 2).

    Args:
        task: multilabel: each class has a distribution of its own, over yes and no; mean also over the classes.
        logits: (B, K) float32, the student's.
        targets: (B, K) float32, the teacher's.
        temperature: T.
    """
    logits, targets = logits / temperature, targets / temperature
    if task == "multilabel":
        logits, targets = (F.logsigmoid(_yes_and_no(both)) for both in (logits, targets))
    else:
        logits, targets = logits.log_softmax(-1), targets.log_softmax(-1)
    divergence = F.kl_div(logits, targets, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean()


def feature_loss(features: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine between (B, D) and (B, D): (), mean over the batch, in 0..2."""
    return 1 - F.cosine_similarity(features.float(), targets.float()).mean()


class Distilling(nn.Module):
    """The loss of a student who has a teacher.

    Args:
        said: what is learned.
        task: of both.
        teacher: who is asked.
        spec: how the student wants its images.
        width: D, features that the student's head takes.
    """

    def __init__(self, said: Distill, task: Task, teacher: Teacher, spec: ImageSpec, width: int) -> None:
        super().__init__()
        self._said, self._task, self._spec = said, task, spec
        self.teacher = teacher
        self.projection = nn.Linear(width, teacher.width) if said.features else None

    def forward(
        self, hard: Tensor, logits: Tensor, features: Tensor, pixel_values: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The whole loss, and by name the parts that the teacher adds to it, unweighted; each ().

        Args:
            hard: (), loss of the labels.
            logits: (B, K) float32, the student's.
            features: (B, D) float, that go into its head.
            pixel_values: (B, 3, S, S) float, its images.
        """
        targets, their_features = self.teacher.answer(pixel_values, self._spec)
        loss, parts = (1 - self._said.weight) * hard, {}
        if self._said.weight:
            parts["soft_loss"] = soft_loss(self._task, logits, targets, self._said.temperature)
            loss = loss + self._said.weight * parts["soft_loss"]
        if self.projection is not None:
            parts["feature_loss"] = feature_loss(self.projection(features), their_features)
            loss = loss + self._said.features * parts["feature_loss"]
        return loss, {name: part.detach() for name, part in parts.items()}


def distilling(said: Distill, student: Any, labels: list[str]) -> Distilling:
    """What a ViTClassifier, whose network is built, needs to learn from a teacher.

    Raises:
        UserError: the teacher cannot be loaded, or does not fit.
    """
    task = student.task if said.weight else None
    teacher = load_teacher(said.teacher, said.revision, type(student), labels, task)
    return Distilling(said, student.task, teacher, student.image_spec, feature_width(student.network))


def _yes_and_no(logits: Tensor) -> Tensor:
    """(B, K) -> (B, K, 2), the logits of a class being there and not."""
    return logits.unsqueeze(-1) * logits.new_tensor([1.0, -1.0])
