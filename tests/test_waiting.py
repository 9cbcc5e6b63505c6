"""A clock that only moves when told to: no test here depends on how fast the machine is."""

import csv
import logging
from types import SimpleNamespace

import pytest

from vitcls.callbacks import DataWait, waiting
from vitcls.data import loaders
from vitcls.data.loaders import TimedLoader


@pytest.fixture
def clock(monkeypatch):
    """Its `now` is the time that the callback and the loader see, in seconds."""
    clock = SimpleNamespace(now=0.0)
    for module in (waiting, loaders):
        monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


class Training:
    """The hooks of a training whose batches take as long as said."""

    def __init__(self, clock, **hparams):
        self.clock, self.callback, self.logged = clock, DataWait(), []
        self.trainer = SimpleNamespace(datamodule=SimpleNamespace(hparams=hparams))
        self.trainer.train_dataloader = TimedLoader([], num_workers=0)
        self.module = SimpleNamespace(log=lambda name, value, **how: self.logged.append((name, value, how)))

    def start_epoch(self):
        self.callback.on_train_epoch_start(self.trainer, self.module)

    def step(self, wait, compute):
        self.clock.now += wait + compute
        self.trainer.train_dataloader.waited = wait
        self.callback.on_train_batch_end(self.trainer, self.module, None, {"labels": [0, 1]}, 0)

    def epoch(self, steps, wait, compute):
        self.start_epoch()
        for _ in range(steps):
            self.step(wait, compute)
        self.callback.on_train_epoch_end(self.trainer, self.module)


def test_the_loader_times_each_batch(clock):
    class Slow:
        def __len__(self):
            return 3

        def __getitem__(self, position):
            clock.now += position
            return position

    waits = []
    loader = TimedLoader(Slow(), batch_size=1)
    for _ in loader:
        clock.now += 100  # what is done with the batch is no waiting
        waits.append(loader.waited)
    assert waits == [0, 1, 2]


def test_the_share_is_waiting_over_the_whole_step(clock):
    training = Training(clock)
    training.epoch(steps=3, wait=1, compute=3)
    assert [(name, value) for name, value, _ in training.logged] == [("train/data_wait", 0.25)] * 2
    assert training.logged[0][2] == {"prog_bar": True, "on_step": True, "on_epoch": False}
    assert (training.callback.images, training.callback.waited, training.callback.lasted) == (4, 2, 8)


def test_the_first_batch_of_an_epoch_is_no_measure(clock):
    training = Training(clock)
    for _ in range(2):
        training.start_epoch()
        training.step(wait=100, compute=1)
    assert training.logged == []


@pytest.mark.parametrize("event", ["on_validation_start", "on_save_checkpoint"])
def test_validation_and_saving_are_left_out(clock, event):
    training = Training(clock)
    training.epoch(steps=2, wait=1, compute=1)
    getattr(training.callback, event)(*[training.trainer, training.module, {}][: 3 if "save" in event else 2])
    training.step(wait=1000, compute=1)
    training.step(wait=1, compute=1)
    assert [value for _, value, _ in training.logged] == [0.5, 0.5]


def test_the_figure_follows_the_last_steps(clock):
    training = Training(clock)
    training.epoch(steps=waiting.WINDOW + 1, wait=1, compute=0)
    training.epoch(steps=waiting.WINDOW + 1, wait=0, compute=1)
    assert training.logged[-1][1] == 0


@pytest.mark.parametrize(
    ("cache", "advice"),
    [("none", "or keep a cache with --data.cache jpeg"), ("jpeg", "--data.cache raw"), ("raw", "cores)")],
)
def test_a_training_that_waits_is_advised_once(clock, caplog, cache, advice):
    training = Training(clock, cache=cache)
    with caplog.at_level(logging.WARNING):
        training.epoch(steps=21, wait=1, compute=3)
        training.epoch(steps=21, wait=1, compute=3)
    (said,) = caplog.messages
    assert said.startswith("the training waited for images during 25 % of the epoch's steps (20.0 of 80.0 s): raise")
    assert "--data.num_workers (now 0, on " in said
    assert said.endswith(advice)


@pytest.mark.parametrize(("steps", "wait", "compute"), [(30, 1, 9), (5, 1, 0)])
def test_little_waiting_and_few_steps_are_not_worth_a_word(clock, caplog, steps, wait, compute):
    with caplog.at_level(logging.WARNING):
        Training(clock).epoch(steps, wait, compute)
    assert caplog.messages == []


def test_a_fit_logs_it(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, "--trainer.log_every_n_steps=1", "--data.batch_size=4")[0] == 0
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        shares = [float(row["train/data_wait"]) for row in csv.DictReader(file) if row["train/data_wait"]]
    assert len(shares) == 26  # two epochs of 14 steps, without the first of each
    assert all(0 < share < 1 for share in shares)


def test_it_cannot_be_watched(refuses, fit_words, tmp_path):
    (tmp_path / "stop.yaml").write_text(
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: train/data_wait, mode: min}}]}"
    )
    assert "which is not measured" in refuses(*fit_words, "--config", tmp_path / "stop.yaml")
