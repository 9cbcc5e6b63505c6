"""What is kept of a model's answers: memory, modes, counts."""

import tracemalloc

import datasets
import numpy as np
import torch

from tests.test_attribution import LABELS, model_of
from tests.test_selection import flowers
from vitcls.answers import keep
from vitcls.data.splits import Split
from vitcls.left_out import left_out_scores
from vitcls.outputs import read_outputs
from vitcls.pictures import read_pictures

SIDE = 1500  # 7 MB decoded


def split_of(images, side):
    """Noise, of one class after the other."""
    content = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stored = datasets.Image().encode_example(content)
    table = datasets.Dataset.from_dict(
        {"image": [stored] * images}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    rows = np.arange(images)
    return Split("noise", table, rows, rows % len(LABELS), "image", "f")


def kept(run, model, split):
    logits = np.eye(len(LABELS), dtype=np.float32)[(split.targets + 1) % len(LABELS)]  # all wrong, so all are shown
    keep(run, "test", model, split, (split.rows, logits), {"step": 1, "asked": len(split)})


def test_one_photo_at_a_time_is_in_memory(tmp_path):
    split = split_of(20, SIDE)
    tracemalloc.start()
    kept(tmp_path, model_of("swin"), split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read_pictures(tmp_path, "test")["image"]) == 20
    assert peak < 5 * SIDE * SIDE * 3


def test_where_it_looked_is_asked_without_dropout(tmp_path):
    """After a test Lightning gives a network back in training mode."""
    model, split = model_of("vit"), split_of(3, 40)
    kept(tmp_path, model, split)
    expected = read_pictures(tmp_path, "test")["attribution"]
    assert len(expected) == 3
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    kept(tmp_path, model.train(), split)
    assert read_pictures(tmp_path, "test")["attribution"] == expected


def test_what_was_asked_and_could_not_be_read_is_counted(tmp_path):
    split = split_of(4, 40)
    keep(
        tmp_path,
        "test",
        model_of("swin"),
        split,
        (split.rows[:3], np.zeros((3, len(LABELS)), np.float32)),
        {"asked": 4},
    )
    assert read_outputs(tmp_path, "test").about["unreadable"] == 1


def test_left_out_scores_take_no_more_memory_for_more_penalties():
    features, labels, _, _ = flowers(images=4000)
    targets = np.eye(200, dtype=bool)[labels]
    left_out_scores(features, targets)
    tracemalloc.start()
    left_out_scores(features, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * targets.size * 8  # (N, K) float64
