"""Signals that take the machine away, and the same command again."""

import shutil
import signal

import pytest
import torch
import yaml
from lightning.pytorch import Callback


class Signal(Callback):
    """Sends this process a signal: in a batch of the first epoch, or in the check before it."""

    def __init__(self, name: str, batch: int | None = None) -> None:
        self.number, self.batch = getattr(signal, name), batch

    def on_sanity_check_start(self, trainer, pl_module) -> None:
        if self.batch is None:
            signal.raise_signal(self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch and trainer.current_epoch == 0:
            signal.raise_signal(self.number)


@pytest.fixture
def sent(tmp_path):
    def words(*arguments) -> list[object]:
        said = dict(zip(("name", "batch"), arguments, strict=False))
        callbacks = [{"class_path": "tests.test_signals.Signal", "init_args": said}]
        (tmp_path / "signal.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        return ["--config", tmp_path / "signal.yaml"]

    return words


def last(run):
    return torch.load(run / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_the_same_command_goes_on_after_a_signal(vitcls, fit_words, tmp_path, keeps_sigint, sent, name, status):
    """Batch 3 is the first of its window of three, of 7 in an epoch."""
    words = [*fit_words, "--trainer.accumulate_grad_batches=3", "--data.batch_size=8", "--trainer.log_every_n_steps=2"]
    assert vitcls(*words, "--run_name=whole")[0] == 0
    words += ["--resume=true", *sent(name, 3)]
    before = signal.getsignal(signal.SIGTERM)
    ended, out, _ = vitcls(*words)
    run = tmp_path / "runs" / "run"
    assert ended == status
    assert "interrupted after step 2; go on with" in out
    assert last(run)["global_step"] == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert vitcls(*words)[0] == 0
    assert [path.name for path in run.parent.iterdir() if path.name != "whole"] == ["run"]
    assert not yaml.safe_load((run / "config.yaml").read_text())["resume"]
    torch.testing.assert_close(last(run.parent / "whole")["state_dict"], last(run)["state_dict"], rtol=0, atol=0)
    rows = [len((run.parent / name / "metrics.csv").read_text().splitlines()) for name in ("whole", "run")]
    assert rows[0] == rows[1]


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_validation(
    vitcls, fit_words, tmp_path, keeps_sigint, sent
):
    assert vitcls(*fit_words, *sent("SIGTERM", 3))[0] == 143
    run = tmp_path / "runs" / "run"
    assert last(run)["global_step"] == torch.load(run / "best.ckpt", weights_only=True)["global_step"] == 4
    assert vitcls("fit", "--ckpt_path", run)[0] == 0
    assert last(run)["global_step"] == 8


def test_a_signal_waits_for_the_validation_that_follows_a_step(vitcls, fit_words, tmp_path, keeps_sigint, sent):
    words = [*fit_words, "--trainer.val_check_interval=2", "--trainer.max_epochs=1"]
    assert vitcls(*words, *sent("SIGTERM", 1))[0] == 143
    assert last(tmp_path / "runs" / "run")["global_step"] == 3


def test_epochs_of_one_step_can_be_interrupted(vitcls, fit_words, tmp_path, keeps_sigint, sent):
    assert vitcls(*fit_words, "--trainer.limit_train_batches=1", *sent("SIGTERM", 0))[0] == 143
    assert last(tmp_path / "runs" / "run")["global_step"] == 1


def test_a_signal_before_the_training_ends_it_as_well(vitcls, fit_words, tmp_path, keeps_sigint, sent):
    assert vitcls(*fit_words, *sent("SIGTERM"))[0] == 143
    assert not list(tmp_path.glob("runs/run/*.ckpt"))


def test_a_finished_run_is_left_as_it_is(vitcls, fit_words, tmp_path):
    words = [*fit_words, "--resume=true", "--trainer.max_epochs=1"]
    assert vitcls(*words)[0] == 0
    run = tmp_path / "runs" / "run"
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.suffix in (".yaml", ".json", ".ckpt")}
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert out.splitlines()[-1] == f"the run is finished: {run}"
    assert {name: (run / name).read_bytes() for name in before} == before
    shutil.rmtree(run / "model")
    assert vitcls(*words)[0] == 0
    assert (run / "model" / "config.json").is_file()


def test_what_cannot_be_resumed_is_said(refuses, fit_words, tmp_path):
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "thesis.tex").write_text("")
    assert "holds thesis.tex and no checkpoint of a run" in refuses(*fit_words, "--resume=true")
    assert "leave --ckpt_path out" in refuses(*fit_words, "--resume=true", "--ckpt_path", tmp_path)
    assert "--resume belongs to fit" in refuses("validate", "--ckpt_path", tmp_path, "--resume=true")
