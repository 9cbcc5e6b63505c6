"""A process that decodes and dies: met while a batch is waited for, told with its cause and what to do."""

import _thread
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vitcls.data.workers import WorkerStart
from vitcls.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written
AGAIN = 0.1  # seconds until a death is looked at again, where it could not be told
WAITING = ("multiprocessing.queues", "multiprocessing.connection", "selectors", "queue", "threading")
_WITHOUT = "--data.num_workers 0 reads the images in the main process"
_waited_for: Sequence[BaseProcess] = ()  # the workers whose batch the main process is waiting for


class DeadWorkerError(UserError):
    """A process that decodes died; of several training processes only its own knows."""

    def __init__(self, message: str) -> None:
        super().__init__(message, of_one_process=True)


class WatchedLoader(DataLoader):
    """A DataLoader that tells of which cause a worker died, at which image.

    Torch raises its own error wherever the main process happens to be, be it inside an optimiser step or
    while a checkpoint is written, and says `exited unexpectedly`. Here it is met where a batch is asked for.

    Its `dataset` has `images` with names, and its `worker_init_fn` is a WorkerStart.
    """

    _workers: Sequence[BaseProcess] = ()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            with self._explained():  # workers that stayed from the last epoch may have died since
                batches = super().__iter__()
            self._workers = getattr(batches, "_workers", ())  # torch has no public name for them
            _listen(self._workers)
            while True:
                with self._explained():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        finally:
            if not self.persistent_workers:
                self._workers = ()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        global _waited_for
        try:
            _waited_for = self._workers
            if _one_died():
                raise ChildProcessError("a worker died")
            yield
        except Exception as error:
            _waited_for = ()
            dead = _dead(self._workers, error)
            if dead is not None:
                raise DeadWorkerError(self._obituary(dead)) from error
            if str(error).startswith("DataLoader worker"):  # torch's own, while the workers are being started
                said = str(error).strip().rstrip(".")
                raise DeadWorkerError(
                    f"A process that reads images died when it was started ({said}). Lower --data.num_workers "
                    f"({self.num_workers} now); {_WITHOUT}."
                ) from error
            raise
        finally:
            _waited_for = ()

    def _obituary(self, dead: int) -> str:
        worker, workers = self._workers[dead], len(self._workers)
        assert worker.exitcode is not None
        assert isinstance(self.worker_init_fn, WorkerStart)
        position, images = self.worker_init_fn.position(dead), getattr(self.dataset, "images", None)
        # Of a stream it is the place in a batch that only the worker has.
        at = "" if position is None or images is None else f" at {images.name(position)}"
        who = f"A process that reads images (worker {dead + 1} of {workers}, process id {worker.pid})"
        return f"{who} {how(worker.exitcode)}{at}. {advice(worker.exitcode, workers, named=bool(at))}"


def how(status: int) -> str:
    """What became of a process, by its exit status; of a signal, minus its number."""
    return f"ended with exit status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"


def advice(status: int, workers: int, named: bool = True) -> str:
    """The likely cause of a worker's death, and what to do.

    Args:
        status: the exit status; of a signal, minus its number.
        workers: how many there were.
        named: whether the image is known that the worker was at.
    """
    name = _signal_name(-status) if status < 0 else ""
    if name == "SIGKILL":
        return (
            "Most likely the system ran out of memory and ended it: lower --data.num_workers "
            f"({workers} now) or --data.batch_size."
        )
    if name == "SIGBUS":
        return (
            f"Most likely the shared memory through which batches travel was full{_shared_memory()}: enlarge it "
            f"(docker run --shm-size 2g), or lower --data.num_workers ({workers} now); {_WITHOUT}, which needs none."
        )
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return "Another program asked it to end, such as a job scheduler at its time limit; run it again."
    look = "look at that image, or have all of them read with `python -m vitcls check`, and remove or replace it; "
    return f"A library crashed or ended the process: {look if named else ''}{_WITHOUT}."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


def _shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    room = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY}: {room.total / 1e6:.0f} MB, {room.free / 1e6:.0f} MB free now)"


def _listen(workers: Sequence[BaseProcess]) -> None:
    """Take the place of torch's handler: a death while nobody waits must not interrupt what is done then.

    Without any handler torch itself would look every five seconds, but a worker that was killed half-way
    through an answer would be waited for without end.
    """
    if workers and threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, _on_child_ended)


def _dead(workers: Sequence[BaseProcess], error: Exception) -> int | None:
    """Which of them died, if that is why the error was raised."""
    # Of a connection that breaks the other side hears first, a moment before the process has ended.
    patience = 1.0 if isinstance(error, (OSError, EOFError)) else 0.0
    ended = wait([worker.sentinel for worker in workers], patience) if workers else []
    for number, worker in enumerate(workers):
        if worker.sentinel in ended:
            worker.join()
            return number
    return None


def _on_child_ended(_: int, frame: FrameType | None) -> None:
    """Interrupt the wait for a batch, and nothing else: an error raised in what a collector calls is lost."""
    if not _one_died():
        return
    if _is_the_wait(frame):
        raise ChildProcessError("a worker died")
    _thread.start_new_thread(_look_again, ())  # a threading.Timer takes a lock that the interrupted code may hold


def _look_again() -> None:
    time.sleep(AGAIN)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)


def _one_died() -> bool:
    # 0 and SIGTERM are how torch itself ends workers; of another's, it finds out by looking.
    return any(worker.exitcode not in (None, 0, -signal.SIGTERM) for worker in _waited_for)


def _is_the_wait(frame: FrameType | None) -> bool:
    """Whether the frame is where torch waits for a batch, or one of the standard library's below that."""
    while frame is not None and frame.f_globals.get("__name__") in WAITING:
        if frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return frame is not None and frame.f_code is _MultiProcessingDataLoaderIter._try_get_data.__code__
