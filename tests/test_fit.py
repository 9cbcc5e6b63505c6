import csv
import json
from itertools import islice

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from peft import PeftConfig, PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from vitcls import ViTClassifier, records, runs
from vitcls.__main__ import main
from vitcls.models.folder import reload_difference

LORA = ["--model.adapter.r=4", "--model.adapter.dropout=0"]
KINDS = {"full": [], "lora": LORA, "head": ["--model.train=head"]}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def val_figures(run):
    return json.loads((run / "metrics.json").read_text())["validation"]


def test_a_run_folder_holds_what_another_person_needs(vitcls, fit_words, tmp_path, kind):
    status, out, _ = vitcls(*fit_words, *kind)
    run = tmp_path / "runs" / "run"
    assert status == 0
    assert out.splitlines()[-1] == f"run folder: {run}"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "splits.json", "metrics.csv", "metrics.json", "best.ckpt", "last.ckpt", "model"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_the_saved_config_trains_the_same_model_again(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words)[0] == 0
    first, second = tmp_path / "runs" / "run", tmp_path / "runs" / "run-v1"
    assert vitcls("fit", "--config", first / "config.yaml")[0] == 0
    assert val_figures(first) == val_figures(second)
    assert (first / "splits.json").read_text() == (second / "splits.json").read_text()


def test_splits_are_disjoint_stratified_and_recorded(trained):
    run = trained()
    record = json.loads((run / "splits.json").read_text())
    train, validation = record["train"]["rows"], record["validation"]["rows"]
    assert sorted(train + validation) == list(range(60))
    assert np.bincount(np.array(validation) // 20).tolist() == [2, 2, 2]  # the rows stand class by class


def test_validate_alone_gives_the_best_figures_of_fit_to_the_last_digit(vitcls, trained, kind):
    run = trained(*kind, "--trainer.precision=bf16-mixed")
    status, out, _ = vitcls("validate", "--ckpt_path", run, "--trainer.accelerator=cpu")
    assert status == 0
    logged = val_figures(run)
    for name in ("val/accuracy", "val/loss", "val/macro_accuracy", "val/top5"):
        assert f"{logged[name]}" in out, (name, out)


def test_plain_transformers_and_peft_give_the_validation_accuracy(trained, colours, kind):
    run = trained(*kind)
    config = AutoConfig.from_pretrained(run / "model")
    processor = AutoImageProcessor.from_pretrained(run / "model")
    if (run / "model" / "adapter_config.json").exists():
        base = PeftConfig.from_pretrained(run / "model").base_model_name_or_path
        network = AutoModelForImageClassification.from_pretrained(base, config=config, ignore_mismatched_sizes=True)
        network = PeftModel.from_pretrained(network, run / "model").eval()
    else:
        network = AutoModelForImageClassification.from_pretrained(run / "model").eval()
    rows = json.loads((run / "splits.json").read_text())["validation"]["rows"]
    data = load_dataset(str(colours), split="train").select(rows)
    pixels = processor([image.convert("RGB") for image in data["image"]], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits = network(pixel_values=pixels).logits
    names = [config.id2label[i] for i in logits.argmax(-1).tolist()]
    right = [name == data.features["label"].int2str(label) for name, label in zip(names, data["label"], strict=True)]
    logged = val_figures(run)
    assert torch.tensor(right).float().mean().item() == logged["val/accuracy"]
    assert torch.nn.functional.cross_entropy(logits, torch.tensor(data["label"])).item() == pytest.approx(
        logged["val/loss"], abs=1e-5
    )


def test_a_model_folder_that_gives_other_logits_is_noticed(trained):
    run = trained()
    model = ViTClassifier.load_from_checkpoint(run / "best.ckpt", weights_only=True)
    pixels = torch.randn(2, 3, 32, 32)
    assert reload_difference(model, run / "model", pixels) == 0
    weights = load_file(run / "model" / "model.safetensors")
    weights["classifier.bias"] += 0.01
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    assert reload_difference(model, run / "model", pixels) == pytest.approx(0.01, abs=1e-5)


def test_a_difference_after_reloading_is_an_error(fit_words, monkeypatch):
    monkeypatch.setattr(records, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="gives other logits"):
        main(fit_words)


def test_an_adapter_checkpoint_holds_the_trained_part_only(trained):
    run = trained(*LORA)
    state = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or "classifier" in name for name in state)
    assert not any("original_module" in name for name in state)


def test_an_adapter_on_other_base_weights_is_refused(refuses, trained, tmp_path, tiny_vit):
    run = trained(*LORA)
    other = AutoModelForImageClassification.from_pretrained(tiny_vit)
    torch.nn.init.normal_(next(other.parameters()))
    other.save_pretrained(tmp_path / "other")
    AutoImageProcessor.from_pretrained(tiny_vit).save_pretrained(tmp_path / "other")
    told = refuses("validate", "--ckpt_path", run, "--model.checkpoint", tmp_path / "other")
    assert "are not those that this run was trained on" in told


def test_a_name_that_exists_gets_a_version(vitcls, fit_words, tmp_path):
    for _ in range(3):
        vitcls(*fit_words, "--trainer.max_epochs=1")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run", "run-v1", "run-v2"}


def test_early_stopping_stops_and_the_best_weights_are_kept(vitcls, fit_words, tmp_path):
    (tmp_path / "stop.yaml").write_text(
        yaml.safe_dump(
            {
                "trainer": {
                    "callbacks": [
                        # A rate this high makes the loss rise from some epoch on.
                        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 2}},
                        {"class_path": "RunCheckpoint", "init_args": {"monitor": "val/loss", "mode": "min"}},
                    ]
                }
            }
        )
    )
    vitcls(*fit_words, "--config", tmp_path / "stop.yaml", "--trainer.max_epochs=40", "--model.lr=0.05")
    run = tmp_path / "runs" / "run"
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 40
    assert val_figures(run)["epoch"] == best
    assert val_figures(run)["val/loss"] == pytest.approx(losses[best])
    _, out, _ = vitcls("validate", "--ckpt_path", run)
    assert f"{val_figures(run)['val/loss']}" in out


def test_resuming_goes_on_in_the_same_folder_with_the_same_curve(vitcls, fit_words, tmp_path):
    vitcls(*fit_words)
    run = tmp_path / "runs" / "run"
    before = (run / "metrics.csv").read_text().splitlines()
    status, out, _ = vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=4")
    assert status == 0
    assert out.splitlines()[-1] == f"run folder: {run}"
    with (run / "metrics.csv").open(newline="") as file:
        epochs = [int(float(row["epoch"])) for row in csv.DictReader(file) if row["val/loss"]]
    assert epochs == [0, 1, 2, 3]
    assert len(before) < len((run / "metrics.csv").read_text().splitlines())
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 4
    assert yaml.safe_load((run / "config.1.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_what_the_user_says_on_resuming_beats_the_checkpoint(vitcls, trained):
    run = trained()
    words = ("--trainer.max_epochs=4", "--model.lr=5e-4", "--model.weight_decay=0.2", "--model.schedule=constant")
    assert vitcls("fit", "--ckpt_path", run, *words)[0] == 0
    matrices, vectors = torch.load(run / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (matrices["lr"], matrices["weight_decay"]) == (5e-4, 0.2)
    assert (vectors["lr"], vectors["weight_decay"]) == (5e-4, 0.0)


def test_a_new_patience_beats_the_checkpoints(vitcls, fit_words, tmp_path):
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 7}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}))
    stopping["init_args"]["patience"] = 9
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}))
    vitcls(*fit_words, "--config", tmp_path / "a.yaml")
    run = tmp_path / "runs" / "run"
    vitcls("fit", "--ckpt_path", run, "--config", tmp_path / "b.yaml", "--trainer.max_epochs=3")
    callbacks = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in callbacks.items() if key.startswith("EarlyStopping"))
    assert state["patience"] == 9


def test_a_moved_run_keeps_its_best_when_it_is_resumed(vitcls, fit_words, tmp_path):
    vitcls(*fit_words, "--trainer.max_epochs=3")
    moved = tmp_path / "elsewhere"
    (tmp_path / "runs" / "run").rename(moved)
    best = val_figures(moved)
    # A rate of nearly nothing and all weights decayed away: the epoch that follows is worse or equal.
    words = ("--trainer.max_epochs=4", "--model.lr=0.5", "--model.schedule=constant", "--model.weight_decay=1")
    assert vitcls("fit", "--ckpt_path", moved, *words)[0] == 0
    assert val_figures(moved) == best


def test_nothing_left_to_train_is_said(refuses, trained):
    run = trained()
    assert "Nothing was trained" in refuses("fit", "--ckpt_path", run)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_that_is_not_there_is_an_error(refuses, fit_words, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.ckpt").write_bytes(b"no checkpoint")
    assert "does not exist" in refuses(verb, "--ckpt_path", tmp_path / "nowhere")
    assert "holds no checkpoint" in refuses(verb, "--ckpt_path", tmp_path / "empty")
    assert "cannot be read" in refuses(verb, "--ckpt_path", tmp_path / "file.ckpt")


def test_a_pickle_is_not_executed(refuses, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"hyper_parameters": Bomb()}, tmp_path / "bomb.ckpt")
    assert "cannot be read" in refuses("validate", "--ckpt_path", tmp_path / "bomb.ckpt")
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_ends_cleanly_and_the_run_goes_on(vitcls, fit_words, tmp_path, keeps_sigint):
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 5}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    status, out, err = vitcls(*fit_words, "--config", tmp_path / "interrupt.yaml", "--trainer.max_epochs=3")
    run = tmp_path / "runs" / "run"
    assert status == 130
    assert "Traceback" not in err
    assert "go on with: python -m vitcls fit --ckpt_path" in out
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 5
    status, _, _ = vitcls("fit", "--ckpt_path", run, "--trainer.callbacks=null")
    assert status == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 12
    assert (run / "model").is_dir()


@pytest.mark.parametrize(("monitor", "kept"), [("epoch", 1), ("val/accuracy", 0)])
def test_the_last_epoch_can_be_kept_whatever_its_figures(vitcls, fit_words, tmp_path, monitor, kept):
    """With a rate so small that all epochs are equal."""
    keep = {"class_path": "RunCheckpoint", "init_args": {"monitor": monitor}}
    (tmp_path / "keep.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [keep]}}))
    assert vitcls(*fit_words, "--config", tmp_path / "keep.yaml", "--model.lr=1e-12")[0] == 0
    assert runs.read_metrics(tmp_path / "runs" / "run")["validation"]["epoch"] == kept


def test_a_fit_that_does_not_start_leaves_no_folder(refuses, fit_words, tmp_path):
    refuses(*fit_words, "--data.train_split=nope")
    assert not list((tmp_path / "runs").iterdir())


def test_test_figures_stand_beside_the_validation_figures_and_reads_are_counted(vitcls, trained):
    run = trained()
    vitcls("test", "--ckpt_path", run)
    test = runs.read_metrics(run)["test"]
    assert (test["images"], test["reads"], test["checkpoint"]) == (21, 1, "best.ckpt")
    assert {"test/accuracy", "test/loss", "test/top5", "test/macro_accuracy"} <= set(test)
    _, out, _ = vitcls("test", "--ckpt_path", run)
    assert "read 2 times" in out
    assert val_figures(run)["checkpoint"] == "best.ckpt"


def test_a_test_folder_given_now_replaces_the_data_of_then(vitcls, trained, colours):
    run = trained()
    status, out, _ = vitcls("test", "--ckpt_path", run, "--data.test_dir", colours / "train")
    assert status == 0
    assert "test: 60 images, 3 of 3 classes" in out


def test_a_checkpoint_moved_out_of_its_run_still_validates(vitcls, trained, tmp_path):
    run = trained(*LORA, "--trainer.precision=bf16-mixed")
    (run / "best.ckpt").rename(tmp_path / "alone.ckpt")
    status, out, _ = vitcls("validate", "--ckpt_path", tmp_path / "alone.ckpt")
    assert status == 0
    assert f"{val_figures(run)['val/loss']}" in out


def test_a_fine_tuned_model_validates_without_training(vitcls, trained, colours):
    run = trained()
    words = ("--model.checkpoint", run / "model", "--data.dataset", colours)
    status, out, _ = vitcls("validate", *words)
    assert status == 0
    assert f"{val_figures(run)['val/accuracy']}" in out


def test_images_are_prepared_as_asked_and_that_is_recorded(vitcls, fit_words, tmp_path):
    vitcls(*fit_words, "--data.resize=letterbox")
    run = tmp_path / "runs" / "run"
    assert torch.load(run / "best.ckpt", weights_only=True)["hyper_parameters"]["image"]["resize"] == "letterbox"
    processor = AutoImageProcessor.from_pretrained(run / "model")
    pixels = processor(Image.new("RGB", (64, 16), "white"), return_tensors="pt")["pixel_values"][0]
    assert (pixels[:, 12:20] == 1).all()
    assert (pixels[:, :11] == -1).all()


def test_the_run_trains(vitcls, fit_words, tmp_path):
    vitcls(*fit_words, "--trainer.max_epochs=8", "--model.lr=3e-3")
    assert val_figures(tmp_path / "runs" / "run")["val/accuracy"] == 1.0


def test_an_undecodable_training_image_is_named(vitcls, fit_words, tmp_path, colours):
    broken = tmp_path / "broken"
    for path in islice(sorted((colours / "train").rglob("*.jpg")), 0, None, 4):
        target = broken / path.relative_to(colours)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bad = broken / "train" / "green" / "000.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    status, _, err = vitcls(*fit_words, "--data.dataset", broken, "--data.num_workers=1")
    assert status == 2
    assert "green/000.jpg" in err
    assert "Truncated" in err
    assert "Traceback" not in err
