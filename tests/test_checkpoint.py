from types import SimpleNamespace

import pytest
import torch

from vitcls.callbacks import RunCheckpoint


def best_epochs(scores: list[tuple[float, float]], mode: str) -> list[int]:
    """The epochs that were the best when they came; scores are (monitored, loss)."""
    callback = RunCheckpoint(monitor="val/accuracy", mode=mode)
    found = []
    for epoch, (score, loss) in enumerate(scores):
        metrics = {"val/accuracy": torch.tensor(score), "val/loss": torch.tensor(loss)}
        reduces = SimpleNamespace(reduce_boolean_decision=lambda decision: decision)
        trainer = SimpleNamespace(callback_metrics=metrics, strategy=reduces)
        if callback.check_monitor_top_k(trainer, metrics["val/accuracy"]):
            found.append(epoch)
            callback.best_model_score = metrics["val/accuracy"]
            callback.best_k_models = {"best.ckpt": metrics["val/accuracy"]}
            callback.kth_best_model_path = "best.ckpt"
    return found


@pytest.mark.parametrize(
    ("scores", "mode", "best"),
    [
        ([(0.5, 1.0), (0.6, 2.0), (0.6, 1.5), (0.6, 1.5), (0.6, 1.8), (0.5, 0.1)], "max", [0, 1, 2]),
        ([(0.5, 1.0), (0.4, 2.0), (0.4, 1.5), (0.45, 0.1)], "min", [0, 1, 2]),
    ],
)
def test_of_equal_scores_the_smaller_loss_is_the_best(scores, mode, best):
    assert best_epochs(scores, mode) == best


def test_the_tie_breaking_value_survives_a_resume(tmp_path):
    first, second = RunCheckpoint(dirpath=str(tmp_path)), RunCheckpoint(dirpath=str(tmp_path))
    first._best_tie_break = 0.25
    (tmp_path / "best.ckpt").touch()
    first.best_model_path = str(tmp_path / "best.ckpt")
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["best_tie_break"] == 0.25


def test_a_best_that_is_gone_is_not_the_one_to_beat(tmp_path):
    first, second = RunCheckpoint(dirpath=str(tmp_path)), RunCheckpoint(dirpath=str(tmp_path))
    first.best_model_path = str(tmp_path / "best.ckpt")
    first.best_model_score = torch.tensor(0.9)
    second.load_state_dict(first.state_dict())
    assert second.best_model_score is None
