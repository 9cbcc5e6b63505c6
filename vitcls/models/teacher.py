"""The teacher of a distillation: a trained classifier that is asked and never changed."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vitcls.checkpoints import open_checkpoint
from vitcls.data.preprocess import ImageSpec
from vitcls.errors import UserError, listing
from vitcls.models.features import feature_width, inputs_of_head
from vitcls.models.input_size import at_size
from vitcls.models.network import labels_of_config, load_config
from vitcls.types import Task


class Teacher:
    """A network in eval mode, with its own preprocessing.

    It is no nn.Module, so that a module that has one has none of its weights: not in checkpoints, not in the
    optimiser, not in what DDP keeps alike, and not in the copy that a moving average makes.

    Args:
        network: a transformers image classifier.
        spec: how it wants its images.
        order: of each of the student's classes, its index in the teacher's logits; empty where those are not asked for.
    """

    def __init__(self, network: Any, spec: ImageSpec, order: list[int]) -> None:
        self._network = network.eval().requires_grad_(False)
        self._spec = spec
        self._order = order
        self.width = feature_width(network)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the student has the same teacher."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to where the student is trained, in its precision."""
        self._network.to(device=device, dtype=dtype)

    @torch.no_grad()
    def answer(self, pixel_values: Tensor, spec: ImageSpec) -> tuple[Tensor, Tensor]:
        """What it makes of the student's images.

        Args:
            pixel_values: (B, 3, S, S) float, normalised for the student, mixed or not.
            spec: of the student.

        Returns:
            logits (B, K) float32 in the order of the student's classes, if asked for, and features (B, D) float.
        """
        with inputs_of_head(self._network) as features:
            logits = self._network(pixel_values=seen_by(self._spec, pixel_values, spec)).logits
        return logits.float()[:, self._order], features[0]


def seen_by(theirs: ImageSpec, pixel_values: Tensor, ours: ImageSpec) -> Tensor:
    """Images (B, 3, S, S) normalised for one network, as another one wants them.

    The same views in another size and with another mean and std; that some network was trained on squashed
    images and another on cropped ones is not made up for.
    """
    if (theirs.mean, theirs.std) != (ours.mean, ours.std):
        mean, std, their_mean, their_std = (
            pixel_values.new_tensor(values).view(3, 1, 1) for values in (ours.mean, ours.std, theirs.mean, theirs.std)
        )
        pixel_values = pixel_values * (std / their_std) + (mean - their_mean) / their_std
    return at_size(pixel_values, theirs.size)


def load_teacher(name: str, revision: str | None, classifier: Any, labels: list[str], task: Task | None) -> Teacher:
    """Load a teacher onto the CPU.

    Args:
        name: Hub id, transformers folder, run folder or .ckpt.
        revision: of the Hub repository.
        classifier: the class ViTClassifier, which builds it.
        labels: the student's classes.
        task: the student's; None where only features are asked of the teacher, whose classes may then be others.

    Raises:
        UserError: it cannot be loaded, or has other classes or another task.
    """
    try:
        model = _build(name, revision, classifier, None if task else labels)
    except UserError as error:
        raise UserError(
            f"The teacher {name!r} (--model.distill.teacher) cannot be loaded, and training, also a resumed one, "
            f"needs it: {error}"
        ) from error
    if task is None:
        return Teacher(model.network, model.image_spec, order=[])
    if model.task != task:
        raise UserError(
            f"The teacher {name!r} (--model.distill.teacher) was trained for the task {model.task}, and this is "
            f"{task}; give a teacher of the same --model.task."
        )
    return Teacher(model.network, model.image_spec, _order(name, model.labels, labels))


def _build(name: str, revision: str | None, classifier: Any, labels: list[str] | None) -> Any:
    place = Path(name).expanduser()
    if place.suffix == ".ckpt" or any(place.glob("*.ckpt")):
        checkpoint, _ = open_checkpoint(name, "test")  # says readably what is wrong with a file
        return classifier.load_from_checkpoint(checkpoint.file, map_location="cpu", weights_only=True)
    try:
        return _of_transformers(name, revision, classifier, labels)
    except UserError as error:  # told of the student's option
        raise UserError(str(error).replace("--model.checkpoint", "--model.distill.teacher")) from error


def _of_transformers(name: str, revision: str | None, classifier: Any, labels: list[str] | None) -> Any:
    config = load_config(name, revision)
    labels = labels or labels_of_config(config)
    if labels is None:
        raise UserError("it has no class names; fine-tune it on this data first, and give that run folder.")
    several = config.problem_type == "multi_label_classification"
    model = classifier(name, revision, labels=labels, task="multilabel" if several else "multiclass")
    model.configure_model()
    return model


def _order(name: str, theirs: list[str], ours: list[str]) -> list[int]:
    lacks = [label for label in ours if label not in theirs]
    more = [label for label in theirs if label not in ours]
    if lacks or more:
        differs = [f"lacks {listing(lacks)}"] * bool(lacks) + [f"has besides {listing(more)}"] * bool(more)
        raise UserError(
            f"The teacher {name!r} (--model.distill.teacher) has other classes than the training data: it "
            f"{' and '.join(differs)}. Fine-tune it on this data first, or learn from its features alone "
            "(--model.distill.weight 0 --model.distill.features 1)."
        )
    return [theirs.index(label) for label in ours]
