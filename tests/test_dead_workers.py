"""Workers that really die: the user learns by what, at which image, and what to do."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vitcls.data import dead_workers
from vitcls.data.dead_workers import DeadWorkerError, WatchedLoader, advice
from vitcls.data.decode import decode, decode_file
from vitcls.data.rows import FileImages
from vitcls.data.sampling import TrainSampler
from vitcls.data.workers import WorkerStart, reading
from vitcls.runs import LAST

SIGNALS = ["SIGKILL", "SIGSEGV", "SIGBUS", "SIGFPE"]


class Deadly(Dataset):
    """Numbers; at `at` it does to its own process what is said."""

    def __init__(self, at: int, signal_name: str | None, status: int = 0) -> None:
        self.images = FileImages([Path(f"{n}.jpg") for n in range(24)])
        self.at, self.signal_name, self.status = at, signal_name, status

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> int:
        with reading(position):
            if position == self.at and torch.utils.data.get_worker_info():
                die(self.signal_name, self.status)
            return position


def die(signal_name: str | None, status: int = 0) -> None:
    if signal_name is None:
        os._exit(status)
    os.kill(os.getpid(), getattr(signal, signal_name))
    time.sleep(60)


def loader(rows: Dataset, workers: int = 2, **options) -> WatchedLoader:
    return WatchedLoader(rows, batch_size=2, num_workers=workers, worker_init_fn=WorkerStart(workers), **options)


def sentence(rows: Dataset, **options) -> str:
    with pytest.raises(DeadWorkerError) as caught:
        list(loader(rows, **options))
    return str(caught.value)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_named_with_the_image(name, capfd):
    told = sentence(Deadly(7, name))
    assert f"was killed by {name} at 7.jpg." in told
    assert "worker 2 of 2" in told  # positions 6 and 7 are the second worker's second batch
    assert capfd.readouterr().err == ""  # torch's own line is not there


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_is_told_with_its_status(status):
    assert f"ended with exit status {status} at 7.jpg." in sentence(Deadly(7, None, status))


def test_workers_that_are_started_anew_take_notes_as_well():
    spawned = {"workers": 1, "multiprocessing_context": "spawn"}  # each takes seconds to import everything
    assert "was killed by SIGKILL at 7.jpg." in sentence(Deadly(7, "SIGKILL"), **spawned)


def hand_over(to: Connection) -> None:
    WorkerStart(1)(0)
    with Path(os.devnull).open() as handed:
        to.send(DupFd(handed.fileno()))
        to.recv()


def test_a_worker_is_silent_when_the_main_process_ends_in_the_middle_of_a_batch(capfd):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    worker = fork.Process(target=hand_over, args=(theirs,))
    worker.start()
    handed = ours.recv()
    with socket.socket(socket.AF_UNIX) as ended:
        ended.connect(handed._id[0])  # what fetches a batch begins with, and no more
    os.close(handed.detach())  # those that fetch come one after the other: the worker is through with the first
    ours.send("end")
    worker.join()
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ""


def test_with_workers_that_stay():
    batches = loader(Deadly(-1, None), persistent_workers=True)
    assert len(list(batches)) == 12
    victim = batches._workers[1]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(DeadWorkerError, match=rf"process id {victim.pid}\) was killed by SIGKILL\. Most likely"):
        list(batches)


def test_a_death_does_not_interrupt_what_is_done_meanwhile():
    """Torch's own handler raises inside a step, or while a checkpoint is written."""
    watched = loader(Deadly(-1, None))
    batches = iter(watched)
    next(batches)
    os.kill(watched._workers[1].pid, signal.SIGKILL)
    for _ in range(20):  # a step
        time.sleep(0.01)
    with pytest.raises(DeadWorkerError):
        list(batches)


class DeadAtStart(WorkerStart):
    def __call__(self, worker_id: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_before_the_loader_knows_its_workers(monkeypatch):
    """In a process' first loader, torch's handler is in force while the first rows are drawn, which takes a while."""

    def slowly():
        time.sleep(2)
        yield 0

    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with pytest.raises(DeadWorkerError, match=r"died when it was started \(DataLoader worker"):
        list(WatchedLoader(Deadly(-1, None), num_workers=2, worker_init_fn=DeadAtStart(2), sampler=slowly()))


class Broken(Deadly):
    def __getitem__(self, position: int) -> int:
        raise KeyError("no such thing")


class Collected:
    """An older loader's part, collected while a batch is waited for; in what that calls the signal comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGCHLD)


def collected_by_name() -> None:
    Collected()


def collected_by_weak_reference() -> None:
    Finalize(Event(), signal.raise_signal, args=(signal.SIGCHLD,))


class CollectingLock:
    """Of a queue: taken when an answer is waited for."""

    def __init__(self, collect: Callable[[], None]) -> None:
        self.collect, self.collected = collect, False

    def acquire(self, *_: object) -> bool:
        self.collect()
        self.collected = True
        return True

    def release(self) -> None:
        pass


@pytest.mark.parametrize("collect", [collected_by_name, collected_by_weak_reference])
def test_a_death_is_told_after_something_older_was_collected(monkeypatch, collect):
    monkeypatch.setattr(dead_workers, "_waited_for", [SimpleNamespace(exitcode=3)])
    answers = multiprocessing.Queue()
    answers._rlock = CollectingLock(collect)
    loading = SimpleNamespace(_data_queue=answers, _workers=[])
    before = signal.signal(signal.SIGCHLD, dead_workers._on_child_ended)
    try:
        with pytest.raises(ChildProcessError):
            _MultiProcessingDataLoaderIter._try_get_data(loading, timeout=20)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert answers._rlock.collected


def test_errors_of_workers_that_live_are_their_own():
    with pytest.raises(KeyError, match="no such thing"):
        list(loader(Broken(0, None)))


def test_what_to_do_fits_the_cause():
    killed, crash, bus = (advice(-getattr(signal, name), 4) for name in ("SIGKILL", "SIGSEGV", "SIGBUS"))
    for part in ("ran out of memory", "--data.num_workers (4 now)", "--data.batch_size"):
        assert part in killed
    for part in ("/dev/shm: ", "MB free now", "--shm-size", "--data.num_workers 0"):
        assert part in bus
    for part in ("library crashed", "--data.num_workers 0", "python -m vitcls check"):
        assert part in crash
    assert "job scheduler" in advice(-signal.SIGTERM, 4)


# -- through the verbs --------------------------------------------------------------------------


class DeadlyFile:
    """In workers, decoding the bytes of one file ends in a signal, as a bug of a codec would."""

    def __init__(self, monkeypatch, file: Path, name: str) -> None:
        self.data, self.name, self.main, self.spared = file.read_bytes(), name, os.getpid(), 0
        monkeypatch.setattr("vitcls.data.rows.decode", self.decode)
        monkeypatch.setattr("vitcls.check.reading.decode_file", self.decode_file)

    def decode(self, data: bytes):
        self.meet(data)
        return decode(data)

    def decode_file(self, data: bytes):
        self.meet(data)
        return decode_file(data)

    def meet(self, data: bytes) -> None:
        if data == self.data and os.getpid() != self.main:
            if self.spared == 0:
                die(self.name)
            self.spared -= 1


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_fit_keeps_what_it_has(refuses, vitcls, fit_words, colours, tmp_path, monkeypatch, name):
    sampler = TrainSampler(np.zeros(60, np.int64), seed=42)
    sampler.set_epoch(1)
    files = sorted((colours / "train").rglob("*.jpg"))
    file = files[[draw.position for draw in sampler][40]]  # of the eleventh batch of the second epoch
    deadly = DeadlyFile(monkeypatch, file, name)
    deadly.spared = 1  # the first epoch passes
    words = [*fit_words, "--data.num_workers=1", "--data.validation_dir", colours / "test"]
    words += ["--data.dataset=null", "--data.train_dir", colours / "train", "--data.batch_size=4"]
    told = refuses(*words)
    assert f"was killed by {name} at {file}" in told
    run = tmp_path / "runs" / "run"
    state = torch.load(run / LAST, weights_only=True)
    assert state["global_step"] > 60 // 4  # steps of the second epoch are kept as well
    monkeypatch.undo()
    status, _, err = vitcls("fit", "--ckpt_path", run)
    assert status == 0, err


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "check"])
def test_every_verb_tells(refuses, vitcls, fit_words, colours, tmp_path, monkeypatch, verb):
    data = ["--data.dataset=null", "--data.train_dir", colours / "train", "--data.validation_dir", colours / "test"]
    assert vitcls(*fit_words, *data, "--trainer.max_epochs=1")[0] == 0
    file = colours / "test" / "red" / "003.jpg"
    DeadlyFile(monkeypatch, file, "SIGSEGV")
    run = ["--ckpt_path", tmp_path / "runs" / "run", "--data.num_workers=2"]
    words = {
        "validate": run,
        "test": [*run, "--data.test_dir", colours / "test"],
        "predict": [*run, "--data.predict", colours / "test", "--output", tmp_path / "p.csv"],
        "check": [*fit_words[1:], *data, "--data.num_workers=2", "--output", tmp_path / "check"],
    }
    told = refuses(verb, *words[verb])
    assert f"was killed by SIGSEGV at {file}" in told
    assert told.count(". ") == 1


def test_building_a_cache_tells(refuses, fit_words, colours, monkeypatch):
    file = colours / "train" / "red" / "003.jpg"
    DeadlyFile(monkeypatch, file, "SIGKILL")
    words = [*fit_words, "--data.num_workers=2", "--data.cache=raw", "--data.dataset=null"]
    told = refuses(*words, "--data.train_dir", colours / "train")
    assert f"was killed by SIGKILL at {file}" in told
