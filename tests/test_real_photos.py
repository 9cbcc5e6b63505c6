"""Real pretrained weights on real photos, where they lie beside the repository."""

import json

import pytest
from PIL import Image
from transformers import pipeline


def test_a_pretrained_network_learns_five_flowers_in_one_epoch(vitcls, shared, tmp_path):
    words = {
        "config": "configs/food101.yaml",
        "data.dataset": shared / "data" / "flowers5",
        "data.test_split": "test",
        "model.checkpoint": shared / "models" / "deit-tiny-patch16-224",
        "data.batch_size": 16,
        "data.train_limit": 160,
        "data.num_workers": 0,
        "trainer.accumulate_grad_batches": 1,
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": tmp_path,
        "trainer.precision": 32,
        "trainer.enable_progress_bar": "false",
    }
    assert vitcls("fit", *(f"--{key}={value}" for key, value in words.items()))[0] == 0
    run = tmp_path / "food101"
    assert json.loads((run / "metrics.json").read_text())["validation"]["val/accuracy"] >= 0.6


def test_the_pretrained_head_is_kept_and_agrees_with_the_pipeline_of_transformers(vitcls, shared, tmp_path):
    checkpoint = shared / "models" / "deit-tiny-patch16-224"
    photos = sorted((shared / "data" / "flowers5" / "test" / "daisy").glob("*.jpg"))[:5]
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos:
        (folder / photo.name).write_bytes(photo.read_bytes())
    words = ("predict", "--model.checkpoint", checkpoint, "--data.predict", folder, "--output", tmp_path / "p.csv")
    assert vitcls(*words, "--data.num_workers=0")[0] == 0
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    classify = pipeline("image-classification", str(checkpoint), device="cpu")
    for photo, row in zip(photos, rows, strict=True):
        best = classify(Image.open(photo))[0]
        assert best["label"] in ",".join(row)
        assert best["score"] == pytest.approx(
            max(float(w) for w in row if w.replace(".", "").isdigit() and "." in w), abs=1e-4
        )
