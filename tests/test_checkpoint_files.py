"""Checkpoint files on a disk that fills up, loses bytes, or keeps what a killed process left."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.killing import in_child, in_two_children
from vitcls.callbacks.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def saving_often(tmp_path) -> list[object]:
    """A fit that keeps previous.ckpt, since it is interrupted: Ctrl-C after 6 of its 8 steps."""
    callbacks = [
        {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1}},
        {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}},
    ]
    (tmp_path / "often.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return ["--config", tmp_path / "often.yaml"]


@pytest.fixture
def interrupted(vitcls, fit_words, tmp_path, saving_often, keeps_sigint) -> Path:
    assert vitcls(*fit_words, *saving_often)[0] == 130
    return tmp_path / "runs" / "run"


def step_of(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def test_the_one_before_the_last_is_kept_until_the_training_is_over(vitcls, interrupted):
    assert (step_of(interrupted / "previous.ckpt"), step_of(interrupted / "last.ckpt")) == (5, 6)
    assert vitcls("fit", "--ckpt_path", interrupted, "--trainer.callbacks=null")[0] == 0
    assert sorted(file.name for file in interrupted.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("damage", [truncate, change_a_byte, Path.unlink])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(vitcls, interrupted, damage):
    damage(interrupted / "last.ckpt")
    status, out, err = vitcls("fit", "--ckpt_path", interrupted, "--trainer.callbacks=null")
    assert status == 0, err
    assert f"going on from {interrupted / 'previous.ckpt'}, of step 5" in out
    assert (damage is Path.unlink) != ("last.ckpt cannot be read" in out)
    assert step_of(interrupted / "last.ckpt") == 8


def test_where_both_are_damaged_the_best_is_taken_and_else_it_is_an_error(vitcls, refuses, interrupted):
    for name in ("last", "previous"):
        truncate(interrupted / f"{name}.ckpt")
    best = step_of(interrupted / "best.ckpt")
    words = ("fit", "--ckpt_path", interrupted, "--trainer.callbacks=null")
    assert f"going on from {interrupted / 'best.ckpt'}, of step {best}" in vitcls(*words, "--trainer.max_steps=5")[1]
    for file in interrupted.glob("*.ckpt"):
        truncate(file)
    status, out, err = vitcls(*words)
    assert status == 2
    assert "best.ckpt cannot be read" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("damage", [truncate, change_a_byte])
def test_other_verbs_take_no_other_than_the_one_that_is_meant(refuses, interrupted, damage):
    damage(interrupted / "best.ckpt")
    assert "best.ckpt cannot be read" in refuses("validate", "--ckpt_path", interrupted)


def test_what_a_killed_process_left_is_removed_at_the_next_start(vitcls, interrupted):
    (interrupted / ".last.ckpt.part").write_bytes(b"half")
    assert vitcls("fit", "--ckpt_path", interrupted, "--trainer.callbacks=null")[0] == 0
    assert not (interrupted / ".last.ckpt.part").exists()


def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_is_whole(vitcls, fit_words, tmp_path):
    """The limit of a file's size stands for the disk: the system refuses the bytes beyond it."""
    assert vitcls(*fit_words, "--trainer.max_epochs=1")[0] == 0
    run = tmp_path / "runs" / "run"
    before = {name: (run / name).read_bytes() for name in ("last.ckpt", "best.ckpt")}
    words = ["fit", "--ckpt_path", run, "--trainer.max_epochs=2"]
    status = in_child(words, tmp_path / "log.txt", limit=len(before["last.ckpt"]) // 2)
    told = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("vitcls: ")]
    assert status == 2
    assert len(told) == 1
    assert "could not be written (File too large); best.ckpt, last.ckpt there: whole, of earlier steps" in told[0]
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".*.part"))
    assert vitcls(*words)[0] == 0


def test_a_first_checkpoint_that_does_not_fit_is_told_as_well(fit_words, tmp_path):
    assert in_child(fit_words, tmp_path / "log.txt", limit=20_000) == 2
    assert "no checkpoint is there yet. First make room, then start anew" in (tmp_path / "log.txt").read_text()


def test_a_full_disk_ends_both_of_two_processes(fit_words, tmp_path):
    """The first alone writes; the second must not wait for it."""
    assert in_two_children(fit_words, tmp_path / "log.txt", limit=20_000) == 2
    told = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("vitcls: ")]
    assert len(told) == 1
    assert "could not be written" in told[0]
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_an_error_that_is_none_of_the_disk_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="of ours"):
        AtomicCheckpointIO().save_checkpoint({"a": Unsaveable()}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


class Unsaveable:
    def __reduce__(self):
        raise RuntimeError("of ours")


def test_steps_that_end_within_an_epoch_leave_the_last_checkpoint_and_no_warning(vitcls, fit_words, tmp_path):
    status, out, err = vitcls(*fit_words, "--trainer.max_steps=2")
    assert status == 0, err
    assert "last.ckpt is of epoch 0: not validated" in out
    assert "monitor" not in err
    assert step_of(tmp_path / "runs" / "run" / "last.ckpt") == 2


@pytest.mark.parametrize("said", [{"every_minutes": 0}, {"every_n_steps": 0}])
def test_an_interval_that_cannot_be(refuses, fit_words, tmp_path, said):
    callbacks = [{"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": said}]
    (tmp_path / "never.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert "every_minutes must be above 0, every_n_steps at" in refuses(*fit_words, "--config", tmp_path / "never.yaml")


def test_last_is_saved_by_the_clock_too(fit_words, tmp_path):
    """Every step takes longer than a hundred-thousandth of a minute."""
    callbacks = [
        {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"every_minutes": 1e-5}},
        {"class_path": "tests.killing.KillAt", "init_args": {"place": "on_after_backward", "count": 3}},
    ]
    (tmp_path / "clock.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert in_child([*fit_words, "--config", tmp_path / "clock.yaml"], tmp_path / "log.txt") == -9
    assert step_of(tmp_path / "runs" / "run" / "last.ckpt") == 2
