"""Which arguments of a ViTClassifier are refused, and why."""

from collections.abc import Mapping
from typing import Any

from vitcls.errors import UserError, check_range, listing, suggestion
from vitcls.types import Task


def check_arguments(said: Mapping[str, Any]) -> None:
    """Refuse a value that cannot be, or values that exclude each other.

    Args:
        said: the arguments by name.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    checkpoint, architecture, adapter, train = (
        said[name] for name in ("checkpoint", "architecture", "adapter", "train")
    )
    _check_one_source(checkpoint, architecture, said["exported"])
    _check_exported(said)
    _check_network(architecture, adapter, train, said["image_size"])
    _check_layers(said["layers"], architecture)
    _check_numbers(said)
    _check_rates(said["head_lr"], said["layer_decay"], adapter, train)
    _check_freezing(said["freeze_epochs"], train, adapter)
    _check_last_blocks(said["last_blocks"], architecture, adapter, train)
    warmup_fraction = said["warmup_fraction"] if said["warmup_steps"] is None else 0.0
    _check_schedule(said["schedule"], said["schedule_power"], said["decay_fraction"], warmup_fraction)
    _check_thresholds(said["thresholds"], said["task"])
    _check_temperature(said["temperature"], said["task"])


def _check_numbers(said: Mapping[str, Any]) -> None:
    """Refuse numbers outside of their range."""
    lr, weight_decay, bad_steps = said["lr"], said["weight_decay"], said["max_bad_steps"]
    warmup_fraction, label_smoothing = said["warmup_fraction"], said["label_smoothing"]
    check_range("model.lr", lr, lr > 0, "above 0")
    check_range("model.weight_decay", weight_decay, weight_decay >= 0, "at least 0")
    check_range("model.warmup_fraction", warmup_fraction, 0 <= warmup_fraction <= 1, "between 0 and 1")
    check_range("model.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "at least 0 and below 1")
    check_range("model.max_bad_steps", bad_steps, bad_steps >= 0, "at least 0")


def _check_rates(head_lr: float | None, layer_decay: float, adapter: object, train: str) -> None:
    """Refuse rates out of range, or of layers that do not train."""
    check_range("model.head_lr", head_lr, head_lr is None or head_lr > 0, "above 0")
    check_range("model.layer_decay", layer_decay, 0 < layer_decay <= 1, "above 0 and at most 1")
    if train == "head" and head_lr is not None:
        raise UserError("--model.train head has one rate, --model.lr; set --model.head_lr to null.")
    if layer_decay != 1 and (adapter is not None or train == "head"):
        other = "--model.adapter" if adapter is not None else "--model.train head"
        raise UserError(
            f"--model.layer_decay {layer_decay:g} is for training all weights, but {other} freezes the layers; set one "
            "of them back (--model.adapter null, --model.train all, --model.layer_decay 1)."
        )


def _check_freezing(freeze_epochs: int, train: str, adapter: Any) -> None:
    """Refuse to freeze for a while what never trains."""
    check_range("model.freeze_epochs", freeze_epochs, freeze_epochs >= 0, "at least 0")
    if freeze_epochs and train == "head":
        raise UserError("--model.train head never trains anything else; set --model.freeze_epochs to 0.")
    method = adapter.get("method") if isinstance(adapter, dict) else getattr(adapter, "method", None)
    if freeze_epochs and method == "adalora":
        raise UserError(
            "--model.adapter.method adalora shares out the ranks from the first step on, which --model.freeze_epochs "
            f"{freeze_epochs} would hold still; set it to 0, or take another method."
        )


def _check_last_blocks(blocks: int | None, architecture: object, adapter: object, train: str) -> None:
    """Refuse to choose blocks where others train anyway, or where they are random."""
    check_range("model.last_blocks", blocks, blocks is None or blocks >= 1, "at least 1")
    others = {
        "architecture": architecture is not None,
        "adapter": adapter is not None,
        f"train {train}": train != "all",
    }
    for other in (name for name, said in others.items() if blocks is not None and said):
        raise UserError(
            f"--model.last_blocks {blocks} is for a pretrained network whose own weights train, which --model.{other} "
            "excludes; leave one of the two out."
        )


def _check_schedule(schedule: str, power: float, decay_fraction: float, warmup_fraction: float) -> None:
    """Refuse shapes that there are not, or a rise and a fall that are longer than the training."""
    check_range("model.schedule_power", power, power > 0, "above 0")
    check_range("model.decay_fraction", decay_fraction, 0 <= decay_fraction <= 1, "between 0 and 1")
    if schedule == "warmup_stable_decay" and warmup_fraction + decay_fraction > 1:
        raise UserError(
            f"--model.warmup_fraction {warmup_fraction:g} and --model.decay_fraction {decay_fraction:g} are together "
            "more than the whole training; lower one of them."
        )


def _check_one_source(checkpoint: str | None, architecture: dict[str, Any] | None, exported: str | None) -> None:
    """Refuse two networks, or none."""
    if [checkpoint, architecture, exported].count(None) != 2:
        raise UserError(
            "Give either --model.checkpoint (a Hub id or folder of a pretrained network) or "
            "--model.architecture (a network from scratch), or, where nothing is trained, --model.exported (a folder "
            "that export made), and only one of them; set the others to null."
        )


def _check_exported(said: Mapping[str, Any]) -> None:
    """Refuse to change what is finished."""
    changes = [name for name in ("image_size", "layers", "adapter") if said[name] is not None]
    if said["exported"] is not None and changes:
        raise UserError(
            f"--model.{changes[0]} changes a network, and an exported one is finished: leave it out, or give the run "
            "folder in the place of the exported one."
        )


def _check_network(architecture: dict[str, Any] | None, adapter: object, train: str, image_size: int | None) -> None:
    """Refuse networks that cannot be, such as random weights that are to stay as they are."""
    check_range("model.image_size", image_size, image_size is None or image_size >= 1, "at least 1")
    if architecture is not None and image_size is not None:
        raise UserError("--model.image_size is for a --model.checkpoint; an --model.architecture has it as a field.")
    if architecture is not None and (adapter is not None or train != "all"):
        raise UserError(
            "--model.architecture starts from random weights, which an adapter, a head or biases alone cannot make "
            "up for; give a pretrained --model.checkpoint, or train all weights."
        )
    if adapter is not None and train != "all":
        raise UserError(f"--model.train {train} and --model.adapter exclude each other; set one of them to null.")


def _check_layers(layers: int | None, architecture: dict[str, Any] | None) -> None:
    """Refuse to keep no block, or some of a network that has no checkpoint."""
    check_range("model.layers", layers, layers is None or layers >= 1, "at least 1")
    if architecture is not None and layers is not None:
        raise UserError(
            "--model.layers keeps blocks of a --model.checkpoint; an --model.architecture says how many it has by its "
            "field num_hidden_layers."
        )


def _check_thresholds(thresholds: dict[str, float] | None, task: Task) -> None:
    """Refuse thresholds that are no probabilities, or where the best class is taken anyway."""
    if thresholds and task == "multiclass":
        raise UserError(
            "--model.thresholds belong to --model.task multilabel, but the task is multiclass, where the class of "
            "the highest probability is taken; set them to null."
        )
    for name, value in (thresholds or {}).items():
        check_range(f"model.thresholds.{name}", value, 0 <= value <= 1, "between 0 and 1")


def _check_temperature(temperature: float | None, task: Task) -> None:
    """Refuse a temperature that is none, or where thresholds take its place."""
    if temperature is None:
        return
    if task == "multilabel":
        raise UserError(
            "--model.temperature belongs to --model.task multiclass; of multilabel, --model.thresholds say from which "
            "probability a class is there."
        )
    check_range("model.temperature", temperature, temperature > 0, "above 0")


def check_threshold_names(thresholds: dict[str, float] | None, labels: list[str]) -> None:
    """Refuse thresholds of classes that the model does not have."""
    for name in thresholds or {}:
        if name not in labels:
            raise UserError(
                f"--model.thresholds names {name!r}, which is none of the model's classes"
                f"{suggestion(name, labels)}: {listing(labels)}."
            )
