"""Mixing the images of a training batch with one another, on the device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torchvision.transforms import v2

from vitcls.data.seeding import seeded
from vitcls.types import Batch


def mixer_of(said: Mapping[str, Any], classes: int, seed: tuple[int, ...]) -> "BatchMixer | None":
    """What ImageDataModule's arguments ask for; None where nothing is to be mixed."""
    if not said["mixup"] and not said["cutmix"]:
        return None
    return BatchMixer(said["mixup"], said["cutmix"], classes, seed)


class BatchMixer:
    """Mixup (Zhang et al. 2017, arXiv:1710.09412), CutMix (Yun et al. 2019, arXiv:1905.04899), or either.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha); 0: without.
        cutmix: the same of CutMix. With both, each batch takes one of them at random.
        classes: K.
        seed: draws follow from it, the epoch and the number of the batch.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: tuple[int, ...]) -> None:
        mixers = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        mixers += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
        self._mix = v2.RandomChoice(mixers)
        self._seed = seed

    def __call__(self, batch: Batch, epoch: int, number: int) -> Batch:
        """Mix the batch of that number in its epoch.

        Takes pixel_values (B, 3, S, S) float and labels (B,) int64, or (B, K) float of several classes;
        gives the same pixel_values mixed, and labels (B, K) float.
        """
        seeds = np.random.SeedSequence((*self._seed, epoch, number))
        with seeded(int(seeds.generate_state(1)[0])):
            pixels, labels = self._mix(batch["pixel_values"], batch["labels"])
        return {**batch, "pixel_values": pixels, "labels": labels}
