"""Losses against other implementations and against their papers' formulas."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import sigmoid_focal_loss

from vitcls.errors import UserError
from vitcls.models.losses import Loss, TrainingLoss, check_loss

COUNTS = torch.tensor([50, 30, 15, 5])
LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 3, 3, 0])
SEVERAL = (torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def one(loss: Loss, labels=CLASSES, smoothing: float = 0.0):
    return TrainingLoss(loss, "multiclass", smoothing, COUNTS, 100)(LOGITS, labels)


def several(loss: Loss):
    return TrainingLoss(loss, "multilabel", 0.0, COUNTS, 100)(LOGITS, SEVERAL)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_losses_are_torchs(smoothing):
    expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
    torch.testing.assert_close(one(Loss(), smoothing=smoothing), expected)
    torch.testing.assert_close(one(Loss("focal", gamma=0.0), smoothing=smoothing), expected)
    torch.testing.assert_close(several(Loss()), F.binary_cross_entropy_with_logits(LOGITS, SEVERAL))


def test_balanced_weights_are_those_of_scikit_learn():
    weights = 100 / (4 * COUNTS)
    expected = F.cross_entropy(LOGITS, CLASSES, weight=weights, reduction="sum") / len(CLASSES)
    torch.testing.assert_close(one(Loss(class_weights="balanced")), expected)


def test_a_balanced_epoch_weighs_as_much_as_a_plain_one():
    """So that the same rate suits both."""
    classes = torch.arange(4).repeat_interleave(COUNTS)
    logits = torch.zeros(100, 4)
    balanced = TrainingLoss(Loss(class_weights="balanced"), "multiclass", 0.0, COUNTS, 100)
    torch.testing.assert_close(balanced(logits, classes), F.cross_entropy(logits, classes))


def test_a_class_that_is_mostly_absent_weighs_more_where_it_is_there():
    expected = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, pos_weight=(100 - COUNTS) / COUNTS)
    torch.testing.assert_close(several(Loss(class_weights="balanced")), expected)


def test_focal_is_torchvisions():
    expected = sigmoid_focal_loss(LOGITS, SEVERAL, alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(several(Loss("focal")), expected)
    chances = LOGITS.softmax(1).gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(one(Loss("focal", gamma=3.0)), -((1 - chances) ** 3 * chances.log()).mean())


def test_logit_adjustment_adds_the_frequencies():
    expected = F.cross_entropy(LOGITS + 0.5 * (COUNTS / 100).log(), CLASSES)
    torch.testing.assert_close(one(Loss("logit_adjusted", tau=0.5)), expected)


def test_asymmetric_is_the_papers():
    chances = LOGITS.sigmoid()
    shifted = (chances - 0.05).clamp(min=0)
    expected = -(SEVERAL * chances.log() + (1 - SEVERAL) * shifted**4 * (1 - shifted).log()).mean()
    torch.testing.assert_close(several(Loss("asymmetric")), expected)


@pytest.mark.parametrize("loss", [Loss("focal"), Loss("logit_adjusted"), Loss(class_weights="balanced")])
def test_shares_of_classes_are_means_of_their_losses(loss):
    """As mixed images have them."""
    other = torch.tensor([1, 2, 3, 0, 1, 2])
    shares = 0.3 * F.one_hot(CLASSES, 4).float() + 0.7 * F.one_hot(other, 4).float()
    torch.testing.assert_close(one(loss, shares), 0.3 * one(loss) + 0.7 * one(loss, other))


@pytest.mark.parametrize("name", ["plain", "focal", "logit_adjusted", "asymmetric"])
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_gradients_are_finite_where_the_network_is_sure(name, gamma):
    task = "multilabel" if name == "asymmetric" else "multiclass"
    logits = torch.tensor([[200.0, -200.0, 0.0, 3.0], [-200.0, 200.0, 1.0, 2.0]], requires_grad=True)
    labels = torch.tensor([[0.0, 1, 1, 0], [0, 1, 0, 1]]) if task == "multilabel" else torch.tensor([1, 1])
    gamma = gamma if name in ("focal", "asymmetric") else None
    TrainingLoss(Loss(name, "balanced", gamma), task, 0.0, COUNTS, 100)(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "task", "part"),
    [
        (Loss("logit_adjusted"), "multilabel", "--model.loss.name logit_adjusted is not for --model.task multilabel"),
        (Loss("asymmetric"), "multiclass", "--model.loss.name asymmetric is not for"),
        (Loss("focal", gamma=-1.0), "multiclass", "--model.loss.gamma is -1.0"),
        (Loss(gamma=2.0), "multiclass", "is for the losses focal and asymmetric"),
        (Loss("asymmetric", margin=1.0), "multilabel", "--model.loss.margin is 1.0"),
    ],
)
def test_what_cannot_be_is_refused(loss, task, part):
    with pytest.raises(UserError, match=part):
        check_loss(loss, task)


def test_a_training_takes_the_frequencies_of_its_rows(vitcls, fit_words, tmp_path):
    words = ["--model.loss.name=logit_adjusted", "--model.loss.class_weights=balanced", "--trainer.max_epochs=1"]
    assert vitcls(*fit_words, *words)[0] == 0
    run = tmp_path / "runs" / "run"
    assert "logit_adjusted" in (run / "config.yaml").read_text()
    assert vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=2")[0] == 0
    assert vitcls("validate", "--ckpt_path", run)[0] == 0
