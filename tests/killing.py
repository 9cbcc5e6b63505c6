"""Trainings in processes of their own that are really killed; forked, for to import all libraries takes seconds."""

import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback

from vitcls.__main__ import main
from vitcls.runs import HISTORY, LAST, PART

IN_STEPS = (
    "on_train_batch_start",
    "on_after_backward",
    "on_before_zero_grad",  # after the optimiser's step
    "on_train_batch_end",
)
HOOKS = (*IN_STEPS, "on_validation_batch_end")
HALF_WRITTEN = "in the middle of last.ckpt"
RENAMED = {"before the old one is renamed": LAST, "before the new one is renamed": f".{LAST}{PART}"}
CURVES = "before the curves are written"
EPOCH = "before an epoch's figures are written"
PLACES = (*HOOKS, HALF_WRITTEN, *RENAMED, CURVES, EPOCH)
DIED_WRITING = signal.SIGXFSZ  # of a file that grows over its limit; kills as SIGKILL does


class KillAt(Callback):
    """Kills this process at a place, when it has come there for the `count`-th time."""

    def __init__(self, place: str, count: int) -> None:
        self.place, self.left = place, count
        self.epoch_has_ended = False
        if place in HOOKS:
            setattr(self, place, lambda *_: self.come())
        else:
            sys.addaudithook(self.watch)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.epoch_has_ended = True  # its checkpoints follow, and then its figures

    def come(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, event: str, arguments: tuple) -> None:
        """Python tells of each file that is opened or renamed."""
        if event == "os.rename" and Path(arguments[0]).name == RENAMED.get(self.place):
            self.come()
        if event == "open" and arguments[1] in ("a", "w", "wb"):
            self.watch_written(Path(str(arguments[0])).name)

    def watch_written(self, file: str) -> None:
        if file == HISTORY and (self.place == CURVES or (self.place == EPOCH and self.epoch_has_ended)):
            self.come()
        if file == f".{LAST}{PART}" and self.place == HALF_WRITTEN:
            self.left -= 1
            if self.left == 0:
                signal.signal(DIED_WRITING, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


class KillOnce(Callback):
    """Kills one of several processes before the backward pass of a step, unless torchrun has already restarted them."""

    def __init__(self, rank: int, step: int) -> None:
        self.place = (rank, step)

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if not restarted and (trainer.global_rank, trainer.global_step) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


class SignalPrediction(Callback):
    """Sends this process a signal before a batch of predict, and notes how many batches came.

    Args:
        number: of the signal; 0: none.
        batch: which.
    """

    def __init__(self, number: int, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


class KeepWrites(Callback):
    """Notes the files and folders that this process makes, from its start to the end of the training."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.made: list[str] = []
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in ("w", "a", "x")
        if (writes or event == "os.mkdir") and str(arguments[0]).startswith(str(self.folder)):
            self.made.append(str(arguments[0]))

    def teardown(self, trainer, pl_module, stage) -> None:
        made = list(self.made)
        (self.folder / f"writes.{trainer.global_rank}.json").write_text(json.dumps(made))


def in_child(words: list[object], log: Path, limit: int | None = None) -> int:
    """Run a command line in a forked process; its exit status, or minus the signal that ended it.

    Args:
        words: of the command line.
        log: gets its standard output and error.
        limit: bytes that its files may have.
    """
    return ended(start(words, log, {}, limit))


def in_two_children(words: list[object], log: Path, limit: int | None = None) -> int:
    """The same in two processes that train together, as torchrun starts them; when the first is killed, both are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    ranks = [shared | {"TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank} for rank in (0, 1)]
    first, second = (start(words, log.with_suffix(f".{rank['RANK']}"), rank, limit) for rank in ranks)
    status = ended(first)
    log.write_text(log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text())
    if status != 0:
        os.kill(second, signal.SIGKILL)
    other = ended(second)
    return status or other


def ended(child: int) -> int:
    """Its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(
    words: list[object],
    log: Path,
    environment: dict[str, object],
    limit: int | None = None,
    run: Callable[[list[str]], int] = main,
) -> int:
    """Run a command line in a forked process, by `main` or what is given instead; its id."""
    child = os.fork()
    if child == 0:
        os.environ |= {name: str(value) for name, value in environment.items()}
        _run(words, log, limit, run)
    return child


def _run(words: list[object], log: Path, limit: int | None, run: Callable[[list[str]], int]) -> None:
    status = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        status = run([str(word) for word in words])
    except BaseException:  # noqa: BLE001 - nothing of the child may reach pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
