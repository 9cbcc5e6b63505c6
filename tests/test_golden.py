"""The loss curve of a fixed tiny model: a refactoring must reproduce it."""

import csv

import pytest

# Validation and training loss of each epoch; torch 2.15, x86-64, float32. Sums differ by about 1e-6
# between processors, and learning magnifies that: a true change moves these by more than 1e-3.
CURVE = [0.935995, 1.110071, 0.661003, 0.875118, 0.577690, 0.635787]


def test_the_loss_curve_of_a_tiny_vit_is_reproduced(vitcls, fit_words, tmp_path):
    words = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--trainer.accumulate_grad_batches=2"]
    words += ["--model.adapter.r=4", "--model.adapter.dropout=0.1", "--model.lr=0.01", "--seed_everything=7"]
    assert vitcls(*fit_words, *words)[0] == 0
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        curve = [
            float(row["val/loss"] or row["train/loss"])
            for row in csv.DictReader(file)
            if row["val/loss"] or row["train/loss"]
        ]
    assert curve == pytest.approx(CURVE, abs=1e-3)
