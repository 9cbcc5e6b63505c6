"""What a head would say of each image if it had not seen its label."""

import numpy as np
from numpy.typing import NDArray

PENALTIES = 10.0 ** np.arange(-4, 2.1, 0.5)  # times N; the one with the smallest error on labels left out is taken


def left_out_scores(features: NDArray[np.float32], targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores of a ridge regression of the labels on the features, for each image from all the others.

    In closed form (Hastie, Tibshirani and Friedman 2009, section 7.10.1): the errors of the fit to all
    images over one less their leverages. A label that the network has all but learned by heart has no say here.

    Args:
        features: (N, F) float32 of the images, N at least 2.
        targets: (N, K) bool, the labels.

    Returns:
        (N, K) float32, near 1 where an image has a label and near 0 elsewhere, but not confined to 0..1.
    """
    inputs = features.astype(np.float64)
    inputs -= inputs.mean(axis=0)
    inputs /= np.maximum(inputs.std(axis=0), 1e-6)
    labels = targets.astype(np.float64)
    shares = labels.mean(axis=0)
    spread, directions = np.linalg.eigh(inputs.T @ inputs)
    turned = inputs @ directions
    projected = turned.T @ (labels - shares)
    penalised = (np.maximum(spread, 0) + penalty * len(labels) for penalty in PENALTIES)
    found = (_left_out(turned, one, projected, labels, shares) for one in penalised)  # of (N, K) two at a time
    return min(found, key=lambda scores: float(((scores - labels) ** 2).mean())).astype(np.float32)


def _left_out(
    turned: NDArray[np.float64],
    penalised: NDArray[np.float64],
    projected: NDArray[np.float64],
    labels: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> NDArray[np.float64]:
    leverage = ((turned**2) @ (1 / penalised) + 1 / len(labels))[:, None]
    fitted = turned @ (projected / penalised[:, None]) + shares
    return labels - (labels - fitted) / (1 - leverage)
