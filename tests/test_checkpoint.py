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


def test_the_tie_breaking_value_survives_a_resume():
    first, second = RunCheckpoint(), RunCheckpoint()
    first._best_tie_break = 0.25
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["best_tie_break"] == 0.25
