import csv
import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import functional as tv
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vitcls.data.preprocess import ImageSpec

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def run(trained):
    """A fully trained tiny ViT, whose `model/` stands on its own."""
    return trained("--model.adapter=null", "--trainer.max_epochs=6", "--model.lr=3e-3")


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("shape", [(90, 60), (60, 91), (64, 64)])
def test_five_crops_are_the_corners_and_the_centre(resize, shape):
    spec = ImageSpec(56, 56 if resize != "crop" else 64, resize, "bilinear", HALF, HALF)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8))
    whole = tv.resize(image, [64])
    crops = spec.five_crops(image)
    assert (crops.shape, crops.dtype) == ((5, 3, 56, 56), torch.uint8)
    expected = [whole[:, :56, :56], whole[:, :56, -56:], whole[:, -56:, :56], whole[:, -56:, -56:]]
    for crop, corner in zip(crops, expected, strict=False):
        assert torch.equal(crop, corner)
    assert torch.equal(crops[4], spec.resized("crop").eval_transform(image))


def test_a_photo_and_its_mirror_image_are_scored_alike(vitcls, run, tmp_path):
    (tmp_path / "pair").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pair" / "a.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "pair" / "b.png")
    scores = {}
    for tta in ("null", "flip"):
        out = tmp_path / f"{tta}.csv"
        words = ("predict", "--ckpt_path", run, "--data.predict", tmp_path / "pair", "--output", out)
        assert vitcls(*words, f"--data.tta={tta}")[0] == 0
        with out.open(newline="") as file:
            scores[tta] = [float(row["score"]) for row in csv.DictReader(file)]
    assert scores["null"][0] != scores["null"][1]
    assert scores["flip"][0] == scores["flip"][1]


@pytest.mark.parametrize("tta", ["flip", "five_crop"])
def test_views_count_by_their_mean_probability(vitcls, fit_words, tmp_path, colours, tta):
    words = ("--model.adapter=null", "--trainer.max_epochs=2", "--model.lr=3e-3", f"--data.tta={tta}")
    assert vitcls(*fit_words, *words)[0] == 0
    run = tmp_path / "runs" / "run"
    logged = json.loads((run / "metrics.json").read_text())["validation"]
    network = AutoModelForImageClassification.from_pretrained(run / "model").eval()
    rows = load_dataset(str(colours), split="train").select(
        json.loads((run / "splits.json").read_text())["validation"]["rows"]
    )
    probabilities = mean_probabilities(network, AutoImageProcessor.from_pretrained(run / "model"), rows["image"], tta)
    loss = F.nll_loss(probabilities.log(), torch.tensor(rows["label"])).item()
    assert logged["val/loss"] == pytest.approx(loss, abs=1e-5)


def mean_probabilities(network: nn.Module, processor, images, tta: str) -> torch.Tensor:
    views = [views_of(image.convert("RGB"), tta) for image in images]
    with torch.inference_mode():
        return torch.stack(
            [
                network(processor(list(view), return_tensors="pt")["pixel_values"]).logits.softmax(-1).mean(0)
                for view in views
            ]
        )


def views_of(image: Image.Image, tta: str) -> list[Image.Image]:
    if tta == "flip":
        return [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    spec = ImageSpec(32, 32, "squash", "bilinear", HALF, HALF)
    crops = spec.five_crops(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in crops]
