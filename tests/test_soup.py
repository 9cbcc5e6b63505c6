"""The mean of several runs' weights: what goes in, what is measured, what is kept."""

import csv
import json
import logging

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import multilabel_options
from vitcls.__main__ import main
from vitcls.models.classifier import ViTClassifier
from vitcls.soup.ingredients import mean_with

QUIET = "--trainer.enable_progress_bar=false"


def load(file):
    return torch.load(file, weights_only=True)


def figures(run):
    return json.loads((run / "metrics.json").read_text())


def fits(vitcls, words, root, **kinds):
    """Run folders of fits that differ in their words."""
    for name, more in kinds.items():
        status, _, err = vitcls(*words, *more, f"--run_name={name}")
        assert status == 0, err
    return [root / name for name in kinds]


@pytest.fixture(scope="module")
def two(tiny_vit, colours, tmp_path_factory):
    """Two fine-tunings of the tiny ViT."""
    root = tmp_path_factory.mktemp("two")
    words = ["fit", f"--model.checkpoint={tiny_vit}", f"--data.dataset={colours}", "--data.num_workers=0", QUIET]
    words += ["--data.batch_size=16", f"--trainer.default_root_dir={root}", "--trainer.accelerator=cpu"]
    for name, rate in (("slow", 0.001), ("fast", 0.003)):
        assert main([*words, "--trainer.max_epochs=3", f"--run_name={name}", f"--model.lr={rate}"]) == 0
    logging.getLogger("vitcls").handlers = []
    return [root / "slow", root / "fast"]


def test_a_mean_is_taken_in_one_by_one():
    parts = [{"w": torch.randn(3), "n": torch.tensor(number)} for number in range(3)]
    mean = mean_with(mean_with(parts[0], 1, parts[1]), 2, parts[2])
    torch.testing.assert_close(mean["w"], torch.stack([part["w"] for part in parts]).mean(0))
    assert mean["n"] == 0


def test_the_soup_is_the_mean_of_what_it_says(vitcls, two, tmp_path):
    soup = tmp_path / "soup"
    status, out, err = vitcls("soup", *two, "--output", soup, "--accelerator=cpu")
    assert status == 0, err
    assert out.splitlines()[-1] == f"run folder: {soup}"
    made = figures(soup)
    assert len(made["soup"]["mean_of"]) + len(made["soup"]["left_out"]) == 2
    parts = [load(file)["state_dict"] for file in made["soup"]["mean_of"]]
    kept = load(soup / "best.ckpt")["state_dict"]
    for name, value in kept.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0), rtol=0, atol=1e-6)
    best = max(figures(run)["validation"]["val/accuracy"] for run in two)
    assert made["validation"]["val/accuracy"] >= best
    assert load_file(soup / "model" / "model.safetensors").keys()
    assert (soup / "splits.json").read_text() == (two[0] / "splits.json").read_text()


def test_a_soup_is_tested_and_predicted_with_and_not_resumed(vitcls, refuses, two, tmp_path, colours):
    status, _, err = vitcls("soup", *two, "--output", tmp_path / "made" / "one", "--accelerator=cpu")
    assert status == 0, err
    soup = tmp_path / "made" / "one"
    status, out, err = vitcls("validate", "--ckpt_path", soup, QUIET)
    assert status == 0, err
    for name in ("val/accuracy", "val/loss"):
        assert f"{figures(soup)['validation'][name]}" in out
    assert vitcls("test", "--ckpt_path", soup, QUIET)[0] == 0
    assert figures(soup)["test"]["reads"] == 1
    words = ["--data.predict", colours / "test", "--output", tmp_path / "p.csv", QUIET]
    assert vitcls("predict", "--ckpt_path", soup, *words)[0] == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 21
    for place in (soup, soup / "best.ckpt"):
        assert "holds weights alone" in refuses("fit", "--ckpt_path", place, "--trainer.max_epochs=9")


def test_what_lowers_the_figure_is_left_out(vitcls, two, tmp_path):
    """A checkpoint whose head says the opposite of what was learned."""
    file = tmp_path / "runs" / "bad" / "best.ckpt"
    file.parent.mkdir(parents=True)
    content = load(two[1] / "best.ckpt")
    content["state_dict"]["network.classifier.weight"] *= -50
    torch.save(content, file)
    status, out, err = vitcls("soup", file, two[0], "--accelerator=cpu")
    assert status == 0, err
    made = figures(tmp_path / "runs" / "soup")
    assert made["soup"] == {"mean_of": [str(two[0] / "best.ckpt")], "left_out": [str(file)]}
    assert "left out" in out
    assert f"no mean is as good as {two[0] / 'best.ckpt'} alone" in out
    for name, value in load(two[0] / "best.ckpt")["state_dict"].items():
        assert torch.equal(load(tmp_path / "runs" / "soup" / "best.ckpt")["state_dict"][name], value)
    for name in ("val/loss", "val/accuracy"):
        assert made["validation"][name] == figures(two[0])["validation"][name]


def test_adapters_are_merged_before_they_are_averaged(vitcls, fit_words, tmp_path):
    """Of several kinds, and with a training of all weights."""
    lora = ["--model.adapter.r=2", "--model.adapter.dropout=0", "--model.lr=0.01"]
    other = ["--model.adapter.method=ia3", "--model.adapter.targets=[value]", "--model.lr=0.01"]
    words = [*fit_words, "--trainer.max_epochs=1"]
    folders = fits(vitcls, words, tmp_path / "runs", lora=lora, ia3=other, all=[])
    status, _, err = vitcls("soup", *folders, "--accelerator=cpu")
    assert status == 0, err
    soup = tmp_path / "runs" / "soup"
    parts = []
    for file in figures(soup)["soup"]["mean_of"]:
        network = ViTClassifier.load_from_checkpoint(file, weights_only=True).network
        network = network.merge_and_unload() if hasattr(network, "merge_and_unload") else network
        parts.append(network.state_dict())
    kept = load(soup / "best.ckpt")["state_dict"]
    assert {name.removeprefix("network.") for name in kept} == parts[0].keys()
    for name in parts[0]:
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(kept[f"network.{name}"], mean, rtol=0, atol=1e-6)
    hparams = load(soup / "best.ckpt")["hyper_parameters"]
    assert (hparams["adapter"], hparams["train"]) == (None, "all")


LOW_HEAD = ["--model.train=head", "--model.base_precision=bfloat16"]


@pytest.mark.parametrize("part", [["--model.last_blocks=1"], LOW_HEAD])
def test_a_soup_keeps_all_weights_where_its_first_run_trained_a_part(vitcls, fit_words, two, tmp_path, part):
    folders = fits(vitcls, fit_words, tmp_path / "runs", part=[*part, "--model.lr=0.003"])
    status, _, err = vitcls("soup", *folders, *two, "--accelerator=cpu")
    assert status == 0, err
    soup = tmp_path / "runs" / "soup"
    files = figures(soup)["soup"]["mean_of"]
    assert len(files) > 1
    parts = [ViTClassifier.load_from_checkpoint(file, weights_only=True).state_dict() for file in files]
    kept = load(soup / "best.ckpt")["state_dict"]
    assert kept.keys() == parts[0].keys()
    for name, value in kept.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0), rtol=0, atol=1e-6)


def test_a_soup_of_several_labels_has_thresholds(vitcls, tiny_vit, scenes, tmp_path):
    words = multilabel_options(tiny_vit, scenes, tmp_path / "runs", epochs=1)
    folders = fits(vitcls, words, tmp_path / "runs", a=[], b=["--model.lr=0.002"])
    status, _, err = vitcls("soup", *folders, "--accelerator=cpu")
    assert status == 0, err
    assert (tmp_path / "runs" / "soup" / "thresholds.json").is_file()
    assert figures(tmp_path / "runs" / "soup")["validation"]["val/map"] > 0


def test_the_best_checkpoints_of_one_run_make_a_soup(vitcls, fit_words, tmp_path):
    top = {"monitor": "val/loss", "mode": "min", "save_top_k": 2, "filename": "top-{epoch}"}
    callback = {"class_path": "ModelCheckpoint", "init_args": top}
    (tmp_path / "top.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    assert vitcls(*fit_words, "--config", tmp_path / "top.yaml", "--trainer.max_epochs=3")[0] == 0
    files = sorted((tmp_path / "runs" / "run").glob("top-*.ckpt"))
    assert len(files) == 2
    assert vitcls("soup", *files, "--accelerator=cpu")[0] == 0
    assert (tmp_path / "runs" / "soup" / "best.ckpt").is_file()


def test_runs_that_do_not_go_together_are_refused(vitcls, refuses, fit_words, two, tmp_path):
    words = [*fit_words, "--trainer.max_epochs=1"]
    kinds = {"large": ["--model.image_size=48"], "other": ["--data.split_seed=3"]}
    large, other = fits(vitcls, words, tmp_path / "runs", **kinds)
    place = ["--output", tmp_path / "runs" / "soup", "--accelerator=cpu"]
    assert "differ in model.image_size (None and 48)" in refuses("soup", two[0], large, *place)
    assert "is not that of the run" in refuses("soup", two[0], other, *place)
    assert "at least two checkpoints" in refuses("soup", two[0], two[0] / "best.ckpt")
    assert "does not exist" in refuses("soup", two[0], tmp_path / "nowhere")
    assert not (tmp_path / "runs" / "soup").exists()


def test_batch_norms_make_no_soup(vitcls, refuses, fit_words, tmp_path):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    image = {"size": 32, "resize_to": 32, "resize": "squash", "interpolation": "bilinear"}
    image |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"model": {"checkpoint": None, "architecture": resnet, "image": image}})
    )
    words = [word for word in fit_words if "model.checkpoint" not in word]
    words += ["--config", tmp_path / "r.yaml", "--trainer.max_epochs=1"]
    folders = fits(vitcls, words, tmp_path / "runs", a=[], b=[])
    assert "ResNetForImageClassification has batch norms" in refuses("soup", *folders)


def test_help_tells_what_a_soup_is(vitcls):
    status, out, _ = vitcls("soup", "--help")
    assert status == 0
    assert "the test data is not read" in " ".join(out.split())
