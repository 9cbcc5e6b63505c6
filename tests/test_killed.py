"""A training that is killed and resumed ends as one that was not, to the last bit."""

import csv
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.killing import DIED_WRITING, EPOCH, IN_STEPS, PLACES, in_child, in_two_children

KILLS = 5  # in each of the variants
VARIANTS = {
    "plain": ["--data.num_workers=1"],
    "accumulated": ["--trainer.accumulate_grad_batches=2"],
    "mixed and averaged": ["--data.mixup=0.8", "--data.cutmix=1", "--model.freeze_epochs=1"],
    "dropout": ["--model.adapter.r=2", "--model.adapter.dropout=0.3", "--data.augment=strong"],
}
EMA = {"class_path": "vitcls.callbacks.AveragedWeights", "init_args": {"decay": 0.9}}


def callbacks(file: Path, variant: str, *more: dict[str, Any]) -> list[object]:
    saving = {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1}}
    said = [saving, *([EMA] if "averaged" in variant else []), *more]
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": said}}))
    return ["--config", file]


def curves(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what is measured in seconds, and without empty rows."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v and k != "train/data_wait"} for row in csv.DictReader(file)]
    return sorted((row for row in rows if row.keys() - {"epoch", "step"}), key=lambda row: (int(row["step"]), len(row)))


def assert_same(one: Any, other: Any, place: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def assert_same_runs(whole: Path, parts: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (whole, parts))
        for content in (one, other):
            content["vitcls"]["metrics"].pop("train/data_wait")
            for path in [key for key in content["callbacks"] if key.startswith("RunCheckpoint")]:
                state = content["callbacks"].pop(path)
                content["callbacks"]["best"] = {k: state[k] for k in ("best_model_score", "best_tie_break")}
        assert_same(one, other, name)
    assert curves(whole) == curves(parts)
    for name in ("metrics.json", "splits.json"):
        assert (whole / name).read_text() == (parts / name).read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_that_is_killed_again_and_again_ends_as_if_it_was_not(vitcls, fit_words, tmp_path, colours, variant):
    folder = tmp_path / "photos"
    shutil.copytree(colours, folder)
    for number in range(0, 20, 4):
        (folder / "train" / "red" / f"{number:03}.jpg").write_bytes(b"no image")
    words = [*fit_words, f"--data.dataset={folder}", "--data.on_bad_image=skip", "--data.max_bad_fraction=0.5"]
    words += ["--data.batch_size=8", "--trainer.log_every_n_steps=3", "--trainer.max_epochs=3", *VARIANTS[variant]]
    status, _, err = vitcls(*words, "--run_name=whole", *callbacks(tmp_path / "whole.yaml", variant))
    assert status == 0, err
    draw = random.Random(variant)
    drawn = [(draw.choice(PLACES), draw.randint(1, 3)) for _ in range(KILLS - 1)]
    places = [(EPOCH, 1), *((place, count if place in IN_STEPS else 1) for place, count in drawn)]
    words += ["--run_name=parts", "--resume=true"]
    for place, count in places:
        kill = {"class_path": "tests.killing.KillAt", "init_args": {"place": place, "count": count}}
        status = in_child([*words, *callbacks(tmp_path / "parts.yaml", variant, kill)], tmp_path / "log.txt")
        assert status in (-signal.SIGKILL, -DIED_WRITING), (tmp_path / "log.txt").read_text()
    status = in_child([*words, *callbacks(tmp_path / "parts.yaml", variant)], tmp_path / "log.txt")
    assert status == 0, (tmp_path / "log.txt").read_text()
    assert_same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts")


def test_two_processes_that_are_killed_end_as_if_they_were_not(fit_words, tmp_path):
    words = [*fit_words, "--data.batch_size=4", "--trainer.log_every_n_steps=3"]
    words += ["--data.mixup=0.8", "--model.adapter.r=2", "--model.adapter.dropout=0.3", "--resume=true"]
    log = tmp_path / "log.txt"
    whole = [*words, "--run_name=whole", *callbacks(tmp_path / "whole.yaml", "two")]
    assert in_two_children(whole, log) == 0, log.read_text()
    for count in (3, 4):
        kill = {"class_path": "tests.killing.KillAt", "init_args": {"place": "on_after_backward", "count": count}}
        parts = [*words, "--run_name=parts", *callbacks(tmp_path / "parts.yaml", "two", kill)]
        assert in_two_children(parts, log) == -signal.SIGKILL, log.read_text()
    parts = [*words, "--run_name=parts", *callbacks(tmp_path / "parts.yaml", "two")]
    assert in_two_children(parts, log) == 0, log.read_text()
    assert_same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts")
    content = torch.load(tmp_path / "runs" / "parts" / "last.ckpt", weights_only=True)
    assert content["ImageDataModule"]["train_loader"]["processes"] == 2
