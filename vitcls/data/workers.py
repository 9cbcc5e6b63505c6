"""How a process that decodes starts, and which image it is at."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int64
from types import TracebackType

from lightning.fabric.utilities.seed import pl_worker_init_function

NOWHERE = -1
# Torch's handlers for these print a line of their own before the process dies; the main process tells it all.
_FATAL = ("SIGSEGV", "SIGBUS", "SIGFPE")

_own_notes: "WorkerStart | None" = None  # of this process, if it is a worker
_own_id = 0


class WorkerStart:
    """What a DataLoader calls in each new worker; afterwards the main process knows where the workers are.

    The notes lie in memory that all of them see, so that they outlive a worker that is killed. They reach
    workers that are forked and workers that are started anew.

    Args:
        workers: how many there will be.
        rank: of the training process, for what they draw beside augmentation; not given: they draw nothing.
    """

    def __init__(self, workers: int, rank: int | None = None) -> None:
        self._positions = multiprocessing.RawArray(c_int64, [NOWHERE] * max(1, workers))
        self._rank = rank

    def __call__(self, worker_id: int) -> None:
        """Ready this process, which is a worker."""
        global _own_notes, _own_id
        # Ctrl-C reaches the whole process group; the main process decides when its workers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in _FATAL:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        sys.excepthook = _tell_unless_nobody_listens
        if self._rank is not None:
            pl_worker_init_function(worker_id, self._rank)
        self.note(worker_id, NOWHERE)
        _own_notes, _own_id = self, worker_id

    def note(self, worker_id: int, position: int) -> None:
        """Keep where a worker is."""
        self._positions[worker_id] = position

    def position(self, worker_id: int) -> int | None:
        """Of the image that a worker is at, or was when it died; None between two images."""
        found = self._positions[worker_id]
        return None if found == NOWHERE else found


@contextmanager
def reading(position: int) -> Iterator[None]:
    """Around all that is done with an image: whoever asks why a worker died learns that it was at this one."""
    if _own_notes is None:
        yield
        return
    _own_notes.note(_own_id, position)
    yield
    _own_notes.note(_own_id, NOWHERE)  # not where an error passes: the next image will be noted


def _tell_unless_nobody_listens(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the thread that hands batches over does with an error.

    The main process may end, after its one sentence, in the middle of fetching a batch; this worker outlives it by
    a moment, and that the other end closed is no news.
    """
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
