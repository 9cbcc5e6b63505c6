"""From logits to answers, where there is no torch."""

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5  # of a label's probability, where no other was chosen
UNKNOWN = "unknown"  # the label of an image whose best probability is below what was asked for


def probabilities_of(task: str, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (B, K) -> probabilities (B, K) in 0..1; of `multiclass`, those of an image add up to 1.

    `models.tasks.probabilities_of` in numpy; the difference is below 1e-6.
    """
    if task == "multiclass":
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)
    small = np.exp(-np.abs(logits))  # never of a large number, which would overflow
    return np.where(logits < 0, small, np.float32(1)) / (1 + small)


def best_of(probabilities: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The best classes of each image: (B, K) -> (B, count) or (B, K), best first; of equals the first."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[:, :count]
