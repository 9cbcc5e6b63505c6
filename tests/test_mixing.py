import csv

import pytest
import torch

from vitcls.data.mixing import BatchMixer
from vitcls.types import Batch


def batch(images: int = 8) -> Batch:
    """Image i is filled with the number i; its class is i % 3."""
    pixels = torch.arange(images, dtype=torch.float32).view(-1, 1, 1, 1).expand(images, 3, 16, 16).contiguous()
    return Batch(pixel_values=pixels, labels=torch.arange(images) % 3, ids=torch.arange(images), bad=[])


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_the_labels_are_mixed_as_the_pixels_are(alphas):
    for epoch in range(20):
        mixed = BatchMixer(*alphas, classes=8, seed=(0,))(batch() | {"labels": torch.arange(8)}, epoch, 0)
        assert mixed["labels"].shape == (8, 8)
        numbers = mixed["labels"] @ torch.arange(8.0)  # the mean number that the labels say
        torch.testing.assert_close(mixed["pixel_values"].mean((1, 2, 3)), numbers, rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed["labels"].sum(-1), torch.ones(8))


def test_one_follows_from_seed_epoch_and_number_alone():
    def pixels(mixer: BatchMixer, epoch: int, number: int) -> torch.Tensor:
        torch.rand(3)  # what others draw in between does not matter
        return mixer(batch(), epoch, number)["pixel_values"]

    places = [(0, 0), (0, 1), (1, 0)]
    one, same, other = (BatchMixer(0.8, 1.0, 3, seed) for seed in ((0, 0), (0, 0), (0, 1)))
    first = [pixels(one, *place) for place in places]
    again = [pixels(same, *place) for place in reversed(places)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], pixels(other, 0, 0))


def test_a_mixed_training_learns_and_measures_unmixed(vitcls, fit_words, tmp_path):
    words = ["--data.mixup=0.4", "--data.cutmix=1", "--trainer.max_epochs=12", "--model.lr=3e-3"]
    assert vitcls(*fit_words, *words)[0] == 0
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert max(float(row["val/accuracy"]) for row in rows if row["val/accuracy"]) == 1.0
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] > 0.15, "mixed labels cannot be learned by heart"
