"""Random draws that follow from a seed alone and disturb no others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def run_seed() -> int:
    """The run's `seed_everything`, where Lightning leaves it; 0 where nothing was seeded."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_draws(*place: int) -> None:
    """Seed torch's generators, on all devices, by the run's seed and a place in the training.

    So the draws of a training that was killed and resumed are those of one that was not, without any generator's
    state in checkpoints: those would differ between processes and devices, and what draws between two steps (a
    loader, a validation, a callback) would have to be the same on both ways.

    Args:
        place: numbers that no other place has, such as process, epoch and batch.
    """
    words = np.random.SeedSequence((run_seed(), *place)).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)  # 63 bits: all that a GPU's generator takes


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and give it back as it was.

    Not `torch.manual_seed`: that would seed the GPU as well, and dropout there would repeat itself.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
