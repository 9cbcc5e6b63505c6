"""Trainings in processes of their own that are really killed: forked, since an import of all libraries takes seconds."""

import os
import resource
import signal
import sys
import traceback
from pathlib import Path

from lightning.pytorch import Callback

from vitcls.__main__ import main
from vitcls.runs import LAST, PART

HOOKS = (
    "on_train_batch_start",
    "on_after_backward",
    "on_before_zero_grad",  # after the optimiser's step
    "on_train_batch_end",
    "on_validation_batch_end",
)
WRITING = ("half written", "before the old one is renamed", "before the new one is renamed")
DIED_WRITING = signal.SIGXFSZ  # of a file that grows over its limit; kills as SIGKILL does


class KillAt(Callback):
    """Kills this process by SIGKILL at a place, when it has come there for the `count`-th time."""

    def __init__(self, place: str, count: int) -> None:
        self.left = count
        self.place = place
        if place in WRITING:
            sys.addaudithook(self.watch)
        else:
            setattr(self, place, lambda *_: self.come())

    def come(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, event: str, arguments: tuple) -> None:
        """Python tells of each file that is opened or renamed."""
        if event == "open" and self.place == "half written" and str(arguments[0]).endswith(f".{LAST}{PART}"):
            self.left -= 1
            if self.left == 0:
                signal.signal(DIED_WRITING, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        if event == "os.rename":
            name = {"before the old one is renamed": LAST, "before the new one is renamed": f".{LAST}{PART}"}
            if Path(arguments[0]).name == name.get(self.place):
                self.come()


def in_child(words: list[object], log: Path, limit: int | None = None) -> int:
    """Run a command line in a forked process; its exit status, or minus the signal that ended it.

    Args:
        words: of the command line.
        log: gets its standard output and error.
        limit: bytes that its files may have.
    """
    child = os.fork()
    if child == 0:
        _run(words, log, limit)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(words: list[object], log: Path, limit: int | None) -> None:
    status = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        status = main([str(word) for word in words])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
