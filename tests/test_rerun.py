"""What happens on the second command: other data, other words, another place."""

import csv
import json
import shutil

import pytest
import torch
import yaml

from tests.conftest import draw_split
from vitcls import runs


@pytest.fixture
def run(trained):
    return trained()


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_of_a_verb_ends_well(vitcls, verb):
    status, out, err = vitcls(verb, "--help")
    assert (status, err) == (0, "")
    assert "--data.dataset" in out


def test_a_grown_folder_is_not_validated_on_rows_that_were_trained_on(vitcls, refuses, fit_words, tmp_path, colours):
    folder = tmp_path / "grows"
    shutil.copytree(colours, folder)
    assert vitcls(*fit_words, f"--data.dataset={folder}")[0] == 0
    shutil.copy(folder / "train" / "red" / "000.jpg", folder / "train" / "red" / "0000.jpg")
    for words in (("validate",), ("fit", "--trainer.max_epochs=3")):
        assert "is not that of the run" in refuses(*words, "--ckpt_path", tmp_path / "runs" / "run")


def test_the_same_words_do_not_go_on_with_other_rows(vitcls, refuses, fit_words, tmp_path, colours):
    """Also where they name the data, as the words of --resume always do."""
    grown = tmp_path / "grown"
    shutil.copytree(colours, grown)
    words = [*fit_words, f"--data.dataset={grown}", "--resume=true"]
    assert vitcls(*words, "--trainer.max_epochs=1")[0] == 0
    shutil.copy(grown / "train" / "red" / "000.jpg", grown / "train" / "red" / "0000.jpg")
    assert "is not that of the run" in refuses(*words)


def test_another_share_is_not_validated_on_rows_that_were_trained_on(refuses, run):
    assert "rows that were trained on" in refuses("validate", "--ckpt_path", run, "--data.split_seed=5")


def test_training_rows_are_no_test_set(vitcls, run):
    status, out, _ = vitcls("test", "--ckpt_path", run, "--data.test_split=train")
    assert status == 0
    assert "their figures are no test" in out
    assert "test" not in runs.read_metrics(run)


def test_a_slice_of_the_training_rows_is_no_test_set(vitcls, run):
    _, out, _ = vitcls("test", "--ckpt_path", run, "--data.test_split=train[:30%]+test")
    assert "their figures are no test" in out
    assert "test" not in runs.read_metrics(run)


def test_a_part_of_the_test_set_is_not_kept_as_the_whole(vitcls, run):
    vitcls("test", "--ckpt_path", run, "--trainer.limit_test_batches=1", "--data.batch_size=8")
    assert "test" not in runs.read_metrics(run)


def test_the_split_that_is_trained_on_is_not_taken_for_validation(vitcls, fit_words, tmp_path, colours):
    folder = tmp_path / "three"
    for split in ("train", "validation"):
        shutil.copytree(colours / ("train" if split == "train" else "test"), folder / split)
    words = (f"--data.dataset={folder}", "--data.train_split=train+validation")
    status, out, _ = vitcls(*fit_words, *words)
    assert status == 0
    assert "train: 73 images" in out
    assert "validation: 8 images" in out


def test_a_resume_draws_what_the_training_would_have_drawn(vitcls, fit_words, tmp_path):
    order = {"class_path": "tests.interrupting.KeepOrder", "init_args": {"file": str(tmp_path / "order.json")}}
    (tmp_path / "o.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [order]}}))
    orders = []
    for words in (("--trainer.max_epochs=1",), ("--trainer.max_epochs=2", "--run_name=whole")):
        assert vitcls(*fit_words, "--config", tmp_path / "o.yaml", *words)[0] == 0
        orders.append(json.loads((tmp_path / "order.json").read_text()))
    run = tmp_path / "runs" / "run"
    assert vitcls("fit", "--ckpt_path", run, "--config", tmp_path / "o.yaml", "--trainer.max_epochs=2")[0] == 0
    assert json.loads((tmp_path / "order.json").read_text()) == orders[1]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--data.mixup=0.8", "--data.cutmix=1"],
        ["--data.repeats=2", "--data.num_workers=2", "--data.batch_size=32"],
        ["--data.sampling=balanced", "--data.augment=strong"],
    ],
)
def test_a_resume_inside_an_epoch_gives_the_uninterrupted_weights(vitcls, fit_words, tmp_path, keeps_sigint, words):
    order = {"class_path": "tests.interrupting.KeepOrder", "init_args": {"file": str(tmp_path / "order.json")}}
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}
    for name, callbacks in (("order", [order]), ("interrupt", [interrupt])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert vitcls(*fit_words, *words, "--config", tmp_path / "order.yaml", "--run_name=whole")[0] == 0
    whole = json.loads((tmp_path / "order.json").read_text())
    assert vitcls(*fit_words, *words, "--config", tmp_path / "interrupt.yaml")[0] == 130
    run = tmp_path / "runs" / "run"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6  # the second of 4 in its epoch
    assert vitcls("fit", "--ckpt_path", run, "--config", tmp_path / "order.yaml")[0] == 0
    rest = json.loads((tmp_path / "order.json").read_text())
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]
    weights = [
        torch.load(run.parent / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "run")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_going_on_with_other_batches_inside_an_epoch_is_said(vitcls, fit_words, tmp_path, keeps_sigint):
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    assert vitcls(*fit_words, "--config", tmp_path / "interrupt.yaml")[0] == 130
    words = ["fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.callbacks=null", "--data.batch_size=8"]
    assert "interrupted with batches of 16 images in 1 processes and goes on with 8 in 1" in vitcls(*words)[1]


def test_a_split_of_folders_is_refused(refuses, fit_words, colours):
    words = ["--data.dataset=null", f"--data.train_dir={colours / 'train'}", "--data.train_split=train[:10]"]
    assert "is for --data.dataset; of folders and files all rows are taken" in refuses(*fit_words, *words)


def test_an_interruption_waits_for_the_step_of_its_accumulated_gradients(vitcls, fit_words, tmp_path, keeps_sigint):
    words = [*fit_words, "--trainer.accumulate_grad_batches=3", "--data.batch_size=8"]  # 7 batches, 3 steps an epoch
    press = {"class_path": "tests.interrupting.InterruptInBatch", "init_args": {"batch": 3}}
    (tmp_path / "press.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [press]}}))
    assert vitcls(*words, "--run_name=whole")[0] == 0
    assert vitcls(*words, "--config", tmp_path / "press.yaml")[0] == 130
    run = tmp_path / "runs" / "run"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 2
    assert vitcls("fit", "--ckpt_path", run, "--trainer.callbacks=null")[0] == 0
    weights = [
        torch.load(run.parent / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "run")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_the_same_batches_can_be_learned_by_heart(vitcls, refuses, fit_words):
    assert vitcls(*fit_words, "--trainer.overfit_batches=2")[0] == 0
    stream = ["--data.streaming=true", "--data.validation_split=test", "--trainer.overfit_batches=2"]
    assert "leave one of the two out" in refuses(*fit_words, *stream)


def test_a_resume_from_an_earlier_checkpoint_leaves_no_step_twice(vitcls, run):
    shutil.copy(run / "best.ckpt", run / "early.ckpt")
    content = torch.load(run / "early.ckpt", weights_only=True)
    vitcls("fit", "--ckpt_path", run / "early.ckpt", "--trainer.max_epochs=4")
    with (run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert steps == sorted(set(steps))
    assert content["global_step"] - 1 in steps


def test_a_run_that_lost_its_best_starts_a_new_best(vitcls, run, tmp_path):
    shutil.copy(run / "last.ckpt", tmp_path / "alone.ckpt")
    words = ("--ckpt_path", tmp_path / "alone.ckpt", "--trainer.max_epochs=3", "--run_name=again")
    status, _, err = vitcls("fit", *words, f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu")
    assert status == 0, err
    assert (tmp_path / "again" / "best.ckpt").is_file()
    assert runs.read_metrics(tmp_path / "again")["validation"]["checkpoint"] == "best.ckpt"


def test_a_lost_model_folder_is_written_again(vitcls, run):
    shutil.rmtree(run / "model")
    status, _, _ = vitcls("fit", "--ckpt_path", run)
    assert status == 0
    assert (run / "model" / "config.json").is_file()


def test_checkpoints_can_be_left_out(vitcls, fit_words, tmp_path):
    status, out, err = vitcls(*fit_words, "--trainer.enable_checkpointing=false")
    assert status == 0, err
    assert "no checkpoint was written" in out


def test_other_verbs_take_the_config_of_a_fit_and_keep_its_classes(vitcls, run, tmp_path):
    words = ("validate", "--config", run / "config.yaml", "--ckpt_path", run)
    assert vitcls(*words)[0] == 0
    draw_split(tmp_path / "two", 10, seed=1, classes=("red", "blue"))
    assert vitcls(*words, "--data.dataset=null", f"--data.validation_dir={tmp_path / 'two'}")[0] == 0


def test_time_alone_does_not_tell_how_long_a_schedule_is(refuses, fit_words):
    assert "how long the training is" in refuses(
        *fit_words, "--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"
    )


def test_images_outside_class_folders_are_named(refuses, fit_words, tmp_path):
    draw_split(tmp_path / "stray", 3, seed=1)
    shutil.copytree(tmp_path / "stray" / "red", tmp_path / "stray" / "blue" / "old")
    told = refuses(*fit_words, "--data.dataset=null", f"--data.train_dir={tmp_path / 'stray'}")
    assert "blue/old/000.jpg" in told


def test_folder_names_may_look_like_patterns(vitcls, fit_words, tmp_path):
    draw_split(tmp_path / "photos [2024]", 10, seed=1)
    words = ("--data.dataset=null", f"--data.train_dir={tmp_path / 'photos [2024]'}")
    assert vitcls(*fit_words, *words)[0] == 0


def test_a_checkpoint_of_another_shape_is_a_sentence(vitcls, refuses, fit_words, tmp_path):
    vitcls(*fit_words, "--model.adapter.r=4")
    told = refuses("validate", "--ckpt_path", tmp_path / "runs" / "run", "--model.adapter.r=8")
    assert "do not fit the network" in told


def test_a_checkpoint_of_another_program_is_a_sentence(refuses, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    assert "not a checkpoint of a vitcls run" in refuses("validate", "--ckpt_path", tmp_path / "other.ckpt")


@pytest.mark.filterwarnings("ignore:`ModelCheckpoint.monitor='val/accuracy'.` could not find the monitored key")
def test_a_run_without_validation_is_tested_on_its_last(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, "--trainer.limit_val_batches=0")[0] == 0
    run = tmp_path / "runs" / "run"
    assert not (run / "best.ckpt").exists()
    status, out, _ = vitcls("test", "--ckpt_path", run)
    assert status == 0
    assert "takes its place" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--data.num_workers=-1"], "--data.num_workers is -1; it must be at least 0"),
        (["--model.adapter.dropout=2"], "--model.adapter.dropout is 2.0"),
        (["--model.weight_decay=-1"], "--model.weight_decay is -1.0"),
        (["--model.warmup_fraction=10"], "--model.warmup_fraction is 10.0"),
        (["--model.checkpoint=null", "--model.architecture.hidden_act=nope"], "makes no image classifier"),
        (["--model.checkpoint=null", "--model.architecture.hidden_size=abc"], "makes no image classifier"),
        (["--trainer.default_root_dir=/proc/none"], "No run folder can be made"),
        (["--trainer.strategy=ddp_fork"], "ddp does the same"),
        (["--run_name=.."], "must be the name of one folder"),
    ],
)
def test_more_values_that_cannot_be(refuses, fit_words, words, part):
    assert part in refuses(*fit_words, *words)


def test_a_refused_resume_leaves_the_record_of_the_run_alone(refuses, run):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".yaml", ".json")}
    assert "Nothing was trained" in refuses("fit", "--ckpt_path", run, "--trainer.max_epochs=1")
    refuses("fit", "--ckpt_path", run, "--model.lr=-1")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".yaml", ".json")} == before


def test_test_figures_of_weights_that_are_gone_are_dropped_but_not_their_reads(vitcls, run):
    vitcls("test", "--ckpt_path", run)
    assert "test/accuracy" in runs.read_metrics(run)["test"]
    vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=8", "--model.lr=3e-3")
    assert runs.read_metrics(run)["validation"]["epoch"] > 1
    assert "test/accuracy" not in runs.read_metrics(run)["test"]
    assert runs.read_metrics(run)["test"]["reads"] == 1


def test_slices_without_common_rows_are_taken(vitcls, fit_words):
    words = ("--data.train_split=train[:60%]", "--data.validation_split=train[60%:]")
    assert vitcls(*fit_words, *words)[0] == 0


def test_validating_on_training_rows_is_refused(refuses, fit_words, colours):
    for split in ("train", "train[:10]", "test+train[90%:]"):
        assert "trained on and validated on" in refuses(*fit_words, f"--data.validation_split={split}")
    words = ("--data.train_split=train[:50%]", "--data.validation_split=train[9:]")
    assert "trained on and validated on" in refuses("fit", "--config=configs/digits.yaml", *words)
    folder = f"--data.train_dir={colours / 'train'}"
    told = refuses(*fit_words, "--data.dataset=null", folder, f"--data.validation_dir={colours / 'train'}")
    assert "trained on and validated on" in told


def test_choosing_by_the_test_set_is_said(vitcls, fit_words, colours):
    said = "the best epoch is chosen by rows of the test set"
    assert said in vitcls(*fit_words, "--data.validation_split=test")[1]
    assert said not in vitcls(*fit_words)[1]


def test_one_class_is_refused_and_an_empty_one_is_named(vitcls, refuses, fit_words, tmp_path):
    draw_split(tmp_path / "one", 10, seed=1, classes=("red",))
    words = ("--data.dataset=null", f"--data.train_dir={tmp_path / 'one'}")
    assert "one class only" in refuses(*fit_words, *words)
    draw_split(tmp_path / "two", 10, seed=1, classes=("red", "blue"))
    (tmp_path / "two" / "green").mkdir()
    status, out, _ = vitcls(*fit_words, "--data.dataset=null", f"--data.train_dir={tmp_path / 'two'}")
    assert status == 0
    assert "no images in" in out
    assert "green" in out


def test_a_training_that_diverges_is_said(vitcls, fit_words):
    status, _, err = vitcls(*fit_words, "--model.lr=1e30", "--model.warmup_fraction=0")
    assert status == 2
    assert "The training diverged" in err
    assert "Traceback" not in err


def test_a_fit_of_no_steps_is_refused(refuses, fit_words):
    assert "Nothing was trained" in refuses(*fit_words, "--trainer.max_steps=0")


def test_a_damaged_record_is_named(refuses, run):
    (run / "splits.json").write_text("")
    assert "splits.json is damaged" in refuses("validate", "--ckpt_path", run)
    (run / "config.yaml").write_text("{")
    assert "config.yaml is damaged" in refuses("fit", "--ckpt_path", run)


@pytest.mark.parametrize(
    ("callback", "arguments", "part"),
    [
        ("EarlyStopping", {"monitor": "val/acc"}, "EarlyStopping watches 'val/acc', which is not measured (did you"),
        ("EarlyStopping", {"monitor": "val/accuracy"}, "with mode 'min', but of that figure more is better"),
        ("RunCheckpoint", {"monitor": "val/loss"}, "with mode 'max', but of that figure more is worse"),
        ("RunCheckpoint", {"tie_break": "val/los"}, "RunCheckpoint's tie_break watches 'val/los'"),
    ],
)
def test_watching_nothing_or_the_wrong_way_is_refused_before_training(
    refuses, fit_words, tmp_path, callback, arguments, part
):
    callbacks = {"trainer": {"callbacks": [{"class_path": callback, "init_args": arguments}]}}
    (tmp_path / "watch.yaml").write_text(yaml.safe_dump(callbacks))
    assert part in refuses(*fit_words, "--config", tmp_path / "watch.yaml")


def test_a_model_that_was_never_trained_is_not_measured(refuses, colours):
    assert "needs a trained model" in refuses("predict", "--data.predict", colours)
    assert "nothing has been trained" in refuses("validate", "--config", "configs/digits.yaml")


@pytest.mark.parametrize(("text", "part"), [(b"- a\n", "holds '- a'"), ("model:\n".encode("utf-16"), "not UTF-8 text")])
def test_a_file_that_is_no_configuration_is_a_sentence(refuses, tmp_path, text, part):
    (tmp_path / "odd.yaml").write_bytes(text)
    assert part in refuses("fit", "--config", tmp_path / "odd.yaml")


def test_a_printed_configuration_holds_what_the_checkpoint_knows(vitcls, run, tiny_vit):
    status, out, _ = vitcls("fit", "--ckpt_path", run, "--print_config")
    assert status == 0
    assert yaml.safe_load(out)["model"]["checkpoint"] == str(tiny_vit)
