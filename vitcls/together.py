"""What the processes of a training, on one machine or several, settle together, so that none waits for another."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from vitcls.errors import UserError

T = TypeVar("T")

# How a process learns that another is gone: gloo raises a plain RuntimeError that names its source file.
_GLOO = re.compile(r"^\[\S*gloo/\S+\] (.+?)(\. This is|$)")
_NCCL = ("ncclRemoteError", "ncclSystemError", "Watchdog caught collective", "communicator was aborted")


def of_all_processes(own: T) -> list[T]:
    """What each process gives, in the order of their ranks; all have to call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered = [own] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def at_first_process(own: T) -> list[T]:
    """In the first process what each gives, in the order of their ranks; nothing in the others. All have to call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered = [own] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object(own, gathered or None)
    return gathered


@contextmanager
def failing_together() -> Iterator[None]:
    """Have all processes raise the `UserError` of one, with the name of its machine; all have to come here.

    Without it the others would wait for the one that ended, and its sentence would stand in the output of its
    own machine alone.

    Raises:
        UserError: of this process, or else of the first that has one.
    """
    error = None
    try:
        yield
    except UserError as caught:
        error = caught
    told = of_all_processes((socket.gethostname(), None if error is None else str(error)))
    failed = [(host, sentence) for host, sentence in told if sentence is not None]
    if not failed:
        return
    if len(failed) == len(told):
        assert error is not None
        raise error
    host, sentence = failed[0]
    raise UserError(f"On {host}, though not everywhere: {sentence}") from error


def check_same(what: str, own: str, advice: str) -> None:
    """Refuse to train where the processes have found different things; all have to call it.

    Args:
        what: they should have in common, as the subject of a sentence.
        own: what this one has found.
        advice: what to do about it, a sentence.

    Raises:
        UserError: names two machines, or two processes of one, and what they have found.
    """
    found = of_all_processes((socket.gethostname(), own))
    first_host, first = found[0]
    for rank, (host, other) in enumerate(found):
        if other != first:
            raise UserError(
                f"{what} is not the same in all processes: {first} on {first_host} (process 0), {other} on {host} "
                f"(process {rank}). {advice}"
            )


def lost_process(error: BaseException) -> str | None:
    """The sentence for an error by which a process notices that another one is gone; None for other errors."""
    cause = _cause_of_loss(error)
    if cause is None:
        return None
    return (
        f"the process on {socket.gethostname()} ends because another one of the training was killed, failed or cannot "
        f"be reached ({cause}); what that one or its launcher printed says why. A fit goes on from its last "
        "checkpoint with --resume true."
    )


def _cause_of_loss(error: BaseException) -> str | None:
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):  # they have not even met
        return said
    of_gloo = _GLOO.match(said) if isinstance(error, RuntimeError) else None
    if of_gloo is not None:
        return of_gloo[1]
    of_nccl = isinstance(error, dist.DistBackendError) and any(sign in str(error) for sign in _NCCL)
    return said if of_nccl else None
