"""Random draws that follow from a seed alone and disturb no others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
