"""Which arguments of a ViTClassifier are refused, and why."""

from typing import Any

from vitcls.errors import UserError, check_range, listing, suggestion
from vitcls.types import Task


def check_numbers(lr: float, weight_decay: float, warmup_fraction: float, label_smoothing: float) -> None:
    """Refuse numbers outside of their range."""
    check_range("model.lr", lr, lr > 0, "above 0")
    check_range("model.weight_decay", weight_decay, weight_decay >= 0, "at least 0")
    check_range("model.warmup_fraction", warmup_fraction, 0 <= warmup_fraction <= 1, "between 0 and 1")
    check_range("model.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "at least 0 and below 1")


def check_network(
    checkpoint: str | None, architecture: dict[str, Any] | None, adapter: object, train: str, image_size: int | None
) -> None:
    """Refuse networks that cannot be: two of them, or random weights that are to stay as they are."""
    check_range("model.image_size", image_size, image_size is None or image_size >= 1, "at least 1")
    if architecture is not None and image_size is not None:
        raise UserError("--model.image_size is for a --model.checkpoint; an --model.architecture has it as a field.")
    if (checkpoint is None) == (architecture is None):
        raise UserError(
            "Give either --model.checkpoint (a Hub id or folder of a pretrained network) or "
            "--model.architecture (a network from scratch), and not both; set the other to null."
        )
    if architecture is not None and (adapter is not None or train != "all"):
        raise UserError(
            "--model.architecture starts from random weights, which an adapter, a head or biases alone cannot make "
            "up for; give a pretrained --model.checkpoint, or train all weights."
        )
    if adapter is not None and train != "all":
        raise UserError(f"--model.train {train} and --model.adapter exclude each other; set one of them to null.")


def check_thresholds(thresholds: dict[str, float] | None, task: Task) -> None:
    """Refuse thresholds that are no probabilities, or where the best class is taken anyway."""
    if thresholds and task == "multiclass":
        raise UserError(
            "--model.thresholds belong to --model.task multilabel, but the task is multiclass, where the class of "
            "the highest probability is taken; set them to null."
        )
    for name, value in (thresholds or {}).items():
        check_range(f"model.thresholds.{name}", value, 0 <= value <= 1, "between 0 and 1")


def check_threshold_names(thresholds: dict[str, float] | None, labels: list[str]) -> None:
    """Refuse thresholds of classes that the model does not have."""
    for name in thresholds or {}:
        if name not in labels:
            raise UserError(
                f"--model.thresholds names {name!r}, which is none of the model's classes"
                f"{suggestion(name, labels)}: {listing(labels)}."
            )
