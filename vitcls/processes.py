"""Several processes that train together: which one this is, before there is a Trainer to ask, and what all have."""

import os
from typing import TypeVar

Kept = TypeVar("Kept")


def of_all_processes(own: Kept, processes: int) -> list[Kept]:
    """What each process has, in their order; all of them must ask.

    Args:
        own: of this one; it is pickled, where there are several.
        processes: how many train together.
    """
    if processes == 1:
        return [own]
    import torch  # the program asks for its place before it imports anything slow

    gathered: list[Kept] = [own] * processes
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def is_first_process() -> bool:
    """Whether this is the process that writes and speaks, by the launcher's environment.

    torchrun sets RANK, SLURM sets SLURM_PROCID; Lightning's own launcher sets LOCAL_RANK for the
    processes that it starts, and a user of several machines sets NODE_RANK.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def is_first_of_machine() -> bool:
    """Whether this is the process that speaks on its machine; on one machine the first of all."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
