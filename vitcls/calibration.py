"""The temperature that makes a classifier's probabilities as large as its share of right answers."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

RANGE = 10.0  # temperatures between its inverse and itself: beyond, the logits say nothing or the data is wrong
STEPS = 129  # of the search, in equal ratios of 1.037; between them a parabola


class BestTemperature(Metric):
    """The temperature T with the smallest log loss of softmax(logits / T) (Guo et al. 2017, arXiv:1706.04599, 4.2).

    The log loss is convex in 1/T, and for each T of a fixed row of them it is a sum over images: so nothing of an
    image is kept, and the result is exact over any number of processes. As of a few images without a mistake T would
    become 0, each target is taken for right with the probability (N + 1) / (N + 2) alone (Platt 1999, section 2.2).
    """

    full_state_update = False
    spread: Tensor  # (STEPS,) sums of logsumexp(logits / T)
    right: Tensor  # sum of the targets' logits
    others: Tensor  # sum of the means of the other logits
    count: Tensor  # images

    def __init__(self) -> None:
        super().__init__()
        self.add_state("spread", torch.zeros(STEPS), dist_reduce_fx="sum")
        for name in ("right", "others", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch in.

        Args:
            logits: (B, K) float.
            labels: (B,) int64.
        """
        logits = logits.float()
        logits = logits - logits.max(dim=-1, keepdim=True).values  # small sums keep their last digits
        right = logits.gather(1, labels[:, None])[:, 0]
        others = (logits.sum(dim=-1) - right) / max(1, logits.shape[-1] - 1)
        scales = _inverse_temperatures().to(logits)
        self.spread += torch.stack([(logits * scale).logsumexp(-1).sum() for scale in scales])
        self.right += right.sum()
        self.others += others.sum()
        self.count += len(labels)

    def compute(self) -> Tensor:
        """T, a float64 scalar on the CPU; 1 where nothing was measured."""
        if not self.count:
            return torch.ones((), dtype=torch.float64)
        scales = _inverse_temperatures()
        spread, right, others, count = (
            state.cpu().double() for state in (self.spread, self.right, self.others, self.count)
        )
        doubt = 1 / (count + 2)
        losses = (spread - scales * ((1 - doubt) * right + doubt * others)) / count
        return 1 / _lowest(scales, losses)


def _inverse_temperatures() -> Tensor:
    """(STEPS,) float64, rising."""
    return torch.logspace(-math.log10(RANGE), math.log10(RANGE), STEPS, dtype=torch.float64)


def _lowest(scales: Tensor, losses: Tensor) -> Tensor:
    """Where the parabola through the smallest loss and its neighbours is lowest, in equal ratios of the scales."""
    best = int(losses.argmin())
    if best in (0, len(losses) - 1):
        return scales[best]
    below, at, above = losses[best - 1 : best + 2]
    curvature = below - 2 * at + above
    shift = 0.5 * (below - above) / curvature if curvature > 0 else torch.zeros_like(at)
    return scales[best] * (scales[1] / scales[0]) ** shift
