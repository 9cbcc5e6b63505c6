"""Two real processes on the CPU; forked where a launcher is not the point, for to import everything takes seconds."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml

from tests.conftest import CLASSES, embed
from tests.killing import in_two_children

TWO = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]


def finish(command: list[str], status: int = 0) -> str:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, env=settings)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def finish_forked(words: list[object], log: Path) -> str:
    assert in_two_children(words, log) == 0, log.read_text()
    return log.read_text()


def figures(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(val/\w+)\W+([\d.e-]+)", out)}


def test_two_processes_count_31_images_once(vitcls, fit_words, tmp_path):
    """Padded to 32, an image would count twice."""
    vitcls(*fit_words, "--trainer.max_epochs=1")
    words = ["validate", "--ckpt_path", str(tmp_path / "runs" / "run"), "--data.validation_split=train"]
    words += ["--data.eval_limit=31", "--data.eval_batch_size=8"]
    one = figures(vitcls(*words)[1])
    two = figures(finish_forked([*words, "--trainer.accelerator=cpu"], tmp_path / "log.txt"))
    assert one["val/accuracy"] == two["val/accuracy"]
    assert one["val/macro_accuracy"] == pytest.approx(two["val/macro_accuracy"], abs=1e-6)
    assert one["val/loss"] == pytest.approx(two["val/loss"], abs=1e-5)
    assert (one["val/accuracy"] * 31) % 1 == pytest.approx(0, abs=1e-4)


def test_torchrun_trains_one_run_with_all_its_processes(fit_words, tmp_path):
    """Nothing but the launcher says that there are two: no devices, no strategy."""
    run = tmp_path / "runs" / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    out = finish([*launcher, "-m", "vitcls", *fit_words, "--trainer.max_epochs=2"])
    assert out.splitlines()[-1] == f"run folder: {run}"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert json.loads((run / "metrics.json").read_text())["validation"]["step"] in (2, 4)
    with (run / "metrics.csv").open(newline="") as file:
        last = max(int(float(row["step"])) for row in csv.DictReader(file))
    assert last == 3  # 54 images in batches of 2 x 16 make 2 steps an epoch, counted from 0


def test_two_processes_with_two_workers_each_train_on_a_stream(fit_words, tmp_path, colours):
    """Each on a shard of its own."""
    embed(colours / "test", tmp_path / "data" / "validation.parquet", list(CLASSES))
    for shard in ("train-00000-of-00002", "train-00001-of-00002"):
        embed(colours / "train", tmp_path / "data" / f"{shard}.parquet", list(CLASSES))
    words = [f"--data.dataset={tmp_path / 'data'}", "--data.streaming=true", "--data.num_workers=2"]
    finish_forked([*fit_words, *words], tmp_path / "log.txt")
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        last = max(int(float(row["step"])) for row in csv.DictReader(file))
    assert last == 7  # 120 images in batches of 2 x 16 make 4 steps an epoch


def test_ctrl_c_in_one_process_ends_both_after_the_same_batch(fit_words, tmp_path):
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 3}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    words = [*fit_words, "--config", str(tmp_path / "interrupt.yaml"), *TWO]
    out = finish([sys.executable, "-m", "vitcls", *words], status=130)
    assert "go on with: python -m vitcls fit --ckpt_path" in out
    assert torch.load(tmp_path / "runs" / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_two_processes_share_a_validation_split_a_cache_and_the_count_of_bad_images(
    fit_words, tmp_path, colours, monkeypatch
):
    """The splits are opened before `setup`, to fetch them once, and are the same objects there."""
    folder = tmp_path / "photos"
    for split, source in (("train", "train"), ("validation", "test")):
        shutil.copytree(colours / source, folder / split)
        bad = folder / split / "green" / "003.jpg"
        bad.write_bytes(bad.read_bytes()[:400])
    words = [f"--data.dataset={folder}", "--data.on_bad_image=skip", "--data.max_bad_fraction=0.1", "--data.cache=raw"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    out = finish_forked([*fit_words, *words, "--trainer.max_epochs=1"], tmp_path / "log.txt")
    with (tmp_path / "runs" / "run" / "metrics.csv").open(newline="") as file:
        counts = [row["val/bad_images"] for row in csv.DictReader(file) if row["val/bad_images"]]
    assert [float(count) for count in counts] == [1]
    assert "train/green/003.jpg" in out
    left = [path.name[:6] for path in (tmp_path / "hf" / "vitcls").iterdir()]
    assert left == ["raw-37", "raw-37"]  # training and validation, no lock
