"""Whether an exported network gives the answers of the trained one; measured, on images that it was not trained on."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from vitcls.errors import UserError
from vitcls.types import Task

MOST_DIFFERENCE = 1e-3  # of a logit, of an export in float32
LEAST_AGREEMENT = 0.999  # of the best classes
Network = Callable[[Tensor], Tensor]  # (B, 3, S, S) float32, normalised -> (B, K) float32
Batches = Iterable[tuple[Tensor, Tensor]]  # of images, and labels (B,) or (B, K)


def measured(trained: Network, exported: Network, batches: Batches, task: Task) -> dict[str, Any]:
    """Ask both about the same images, batch by batch in turn.

    Args:
        trained: divided by its temperature.
        exported: by its own runtime.
        batches: of validation images.
        task: accuracy is measured, or mean average precision of multilabel.

    Returns:
        images, the largest difference of a logit, the share of images for which both name the same best class, the
        accuracy (or map) of each, in 0..1, and images a second of each.

    Raises:
        UserError: there are no images, or none of them has a label.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    seconds = np.zeros(2)
    for pixels, labels in batches:
        if not parts:  # the first call of a runtime prepares others
            trained(pixels)
            exported(pixels)
        theirs, of_theirs = _timed(trained, pixels)
        ours, of_ours = _timed(exported, pixels)
        seconds += (of_theirs, of_ours)
        parts.append((theirs, ours, labels))
    if not parts:
        raise UserError("There are no validation images to prove the export on; give some with --validation_dir.")
    before, after, targets = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    if not targets.any() and task == "multilabel":
        raise UserError("No validation image has any label, so there is nothing to prove the export on; give others.")
    name, score = ("accuracy", _accuracy) if task == "multiclass" else ("map", _mean_average_precision)
    return {
        "images": len(targets),
        "largest_difference": float(np.abs(before - after).max()),
        "agreement": float((before.argmax(-1) == after.argmax(-1)).mean()),
        f"{name}_trained": score(before, targets),
        f"{name}_exported": score(after, targets),
        "images_per_second_trained": len(targets) / seconds[0],
        "images_per_second_exported": len(targets) / seconds[1],
    }


def _timed(network: Network, pixels: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = network(pixels)
    return logits, time.perf_counter() - start


def check_exact(found: dict[str, Any]) -> None:
    """Refuse an export in float32 that does not give the same answers.

    Raises:
        UserError: by how much it differs.
    """
    same = found["largest_difference"] <= MOST_DIFFERENCE and found["agreement"] >= LEAST_AGREEMENT
    if not same:  # also of NaN
        raise UserError(
            f"The exported network is not the trained one: of {found['images']} images a logit differs by up to "
            f"{found['largest_difference']:.2g} (at most {MOST_DIFFERENCE:g} is allowed) and {found['agreement']:.1%} "
            f"get the same class (at least {LEAST_AGREEMENT:.1%}). Nothing was kept; another --to may do better."
        )


def check_drop(found: dict[str, Any], most: float) -> None:
    """Refuse an export in integers that has lost too much.

    Args:
        found: from `measured`.
        most: percentage points that it may lose.

    Raises:
        UserError: how much it has lost.
    """
    lost = drop(found)
    if not lost <= most:
        raise UserError(
            f"The exported network has lost {lost:.2f} percentage points on {found['images']} images, and --max_drop "
            f"{most:g} allows fewer. Nothing was kept; export with --to onnx, calibrate with more images "
            "(--calibration_images), or raise --max_drop."
        )


def drop(found: dict[str, Any]) -> float:
    """Percentage points of accuracy (or map) that the exported network has lost; below 0 where it has won."""
    name = "accuracy" if "accuracy_trained" in found else "map"
    return 100 * (found[f"{name}_trained"] - found[f"{name}_exported"])


def _accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(-1) == labels).mean())


def _mean_average_precision(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Over the labels that an image has at least; not a number where a logit is none."""
    there = labels.any(axis=0)
    if not np.isfinite(logits).all():
        return float("nan")
    return float(average_precision_score(labels[:, there] >= 0.5, logits[:, there]))
