"""Which of several processes this is, before there is a Trainer to ask."""

import os


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
