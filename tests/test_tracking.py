"""Learning curves and figures elsewhere: W&B, MLflow, and the report's figures in TensorBoard."""

import importlib.util
import json
import logging

import numpy as np
import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from tests.test_configs import CONFIGS
from vitcls import runs, tracking
from vitcls.attached import attach_report

OVERLAYS = CONFIGS[0].parent / "overlays"
HAS = {name: importlib.util.find_spec(name) is not None for name in ("wandb", "mlflow")}
SERVICES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}


def logger(service, **said):
    arguments = {"name": None, "version": None} if service == "WandbLogger" else {"run_name": None, "run_id": None}
    if service == "MLFlowLogger":
        arguments["tracking_uri"] = "sqlite://"
    return Namespace(class_path=f"lightning.pytorch.loggers.{service}", init_args=Namespace(**(arguments | said)))


def made_of(trainer, run):
    """The arguments with which loggers would be made, and that the configuration is what it was."""
    before = trainer.clone()
    with tracking.joined(trainer, run):
        made = [dict(one.init_args) for one in trainer.logger]
    assert trainer == before
    return made


@pytest.mark.parametrize("name", [name for name, package in SERVICES.items() if not HAS[package]])
def test_a_missing_package_is_told_with_how_to_install_it(refuses, fit_words, tmp_path, name):
    overlay = OVERLAYS / f"{SERVICES[name]}.yaml"
    said = refuses(*fit_words, f"--config={overlay}")
    assert said.startswith(f"vitcls: lightning.pytorch.loggers.{name} needs a package that is not installed: pip ")
    assert said == refuses(*fit_words, f"--trainer.logger={name}")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_class_that_refuses_its_arguments_is_told_in_one_sentence(refuses, fit_words):
    words = ["EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.mode=small"]
    said = refuses(*fit_words, "--trainer.callbacks", *words)
    assert said.endswith("cannot be made: `mode` can be min, max, got small")


@pytest.mark.parametrize("overlay", SERVICES.values())
def test_an_overlay_says_its_command_and_goes_beside_other_loggers(vitcls, fit_words, overlay):
    file = OVERLAYS / f"{overlay}.yaml"
    assert f"--config configs/imagefolder.yaml --config configs/overlays/{overlay}.yaml" in file.read_text()
    status, out, err = vitcls(
        *fit_words, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x", f"--config={file}", "--print_config"
    )
    assert status == 0, err
    assert out.count("class_path: lightning.pytorch.loggers.") == 2


@pytest.mark.parametrize("found", [None, {"WandbLogger": {"version": "abc"}, "MLFlowLogger": {"run_id": "abc"}}])
def test_a_run_there_is_called_as_the_folder_and_gone_on_with(tmp_path, monkeypatch, found):
    monkeypatch.setattr(tracking, "_of_mlflow", lambda known: known)  # there is none to ask
    if found:
        runs.write_tracking(tmp_path, found)
    made = made_of(Namespace(logger=[logger("WandbLogger"), logger("MLFlowLogger")]), tmp_path)
    assert [one.get("name", one.get("run_name")) for one in made] == [tmp_path.name] * 2
    assert [one.get("version", one.get("run_id")) for one in made] == (["abc"] * 2 if found else [None] * 2)


def test_what_was_said_of_a_logger_beats_the_folder(tmp_path):
    runs.write_tracking(tmp_path, {"WandbLogger": {"version": "abc"}})
    assert made_of(Namespace(logger=logger("WandbLogger", name="mine", version="1")), tmp_path) == [
        {"name": "mine", "version": "1"}
    ]


def test_without_a_folder_and_of_other_loggers_nothing_is_added(tmp_path):
    other = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(name=None))
    assert made_of(Namespace(logger=[logger("WandbLogger"), other]), None) == [
        {"name": None, "version": None},
        {"name": None},
    ]
    assert made_of(Namespace(logger=other), tmp_path) == [{"name": None}]


def test_other_processes_than_the_first_have_no_loggers_of_services(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    other = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(name=None))
    assert made_of(Namespace(logger=[logger("WandbLogger"), logger("MLFlowLogger"), other]), tmp_path) == [
        {"name": None}
    ]


@pytest.mark.parametrize("said", [None, False, True])
def test_no_loggers_stay_none(said):
    trainer = Namespace(logger=said)
    with tracking.joined(trainer, None):
        assert trainer.logger is said


def test_a_resume_in_the_same_words_has_a_logger_once(vitcls, fit_words, tmp_path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text(
        f"trainer: {{logger+: [{{class_path: CSVLogger, init_args: {{save_dir: {tmp_path / 'csv'}}}}}]}}"
    )
    words = [*fit_words, "--config", overlay, "--resume=true"]
    assert vitcls(*words, "--trainer.max_epochs=1")[0] == 0
    assert vitcls(*words)[0] == 0
    config = runs.read_config(tmp_path / "runs" / "run")
    assert [one["class_path"] for one in config["trainer"]["logger"]] == ["lightning.pytorch.loggers.CSVLogger"]


def test_a_prediction_says_that_it_logs_nothing(vitcls, trained, colours, tmp_path):
    words = ["--data.predict", colours / "test", "--output", tmp_path / "out.csv", "--trainer.accelerator=cpu"]
    csv = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    status, out, err = vitcls("predict", "--ckpt_path", trained(), *words, *csv)
    assert status == 0, err
    assert "predict has no figures to log" in out
    assert not (tmp_path / "csv").exists()


@pytest.fixture
def report(tmp_path):
    """The folder of a report with a page and two figures, one of which is no PNG."""
    figures = tmp_path / "report" / "figures"
    figures.mkdir(parents=True)
    (figures.parent / "index.html").write_text("<html></html>")
    (figures / "confusion.svg").write_text("<svg></svg>")
    Image.fromarray(np.full((6, 9, 4), 200, np.uint8)).save(figures / "confusion.png")
    return figures.parent


def shown_by_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


def test_tensorboard_shows_the_figures_also_after_the_training_has_closed_it(report, tmp_path):
    boards = TensorBoardLogger(tmp_path, name="", version="")
    boards.log_metrics({"loss": 1.0}, 1)
    boards.finalize("success")
    attach_report([boards], report, step=7)
    [shown] = shown_by_tensorboard(tmp_path)["report/confusion"]
    assert (shown.step, shown.height, shown.width) == (7, 6, 9)


def test_another_logger_gets_nothing_and_a_report_without_files_is_none(report, tmp_path):
    class Refusing(Logger):
        name = version = None

        def log_metrics(self, *_):
            raise AssertionError

        log_hyperparams = experiment = log_metrics

    attach_report([Refusing(), CSVLogger(tmp_path / "csv")], report, 0)
    attach_report([TensorBoardLogger(tmp_path / "boards")], tmp_path / "nothing", 0)
    assert not (tmp_path / "csv").exists()


def test_a_figure_that_cannot_be_handed_over_is_a_warning_and_others_get_it(report, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("vitcls"), "propagate", True)
    refusing, boards = TensorBoardLogger(tmp_path / "a"), TensorBoardLogger(tmp_path / "b", name="", version="")
    monkeypatch.setattr(refusing.experiment, "add_image", lambda *_, **__: 1 / 0)
    attach_report([refusing, boards], report, 0)
    assert {record.getMessage() for record in caplog.records} == {
        f"TensorBoardLogger did not get the report of {report}: division by zero"
    }
    assert list(shown_by_tensorboard(tmp_path / "b")) == ["report/confusion"]


# With the services' own packages; what they hold is read where they keep it.


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    package = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    package.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return package


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the services' own libraries
    pytest.mark.filterwarnings("ignore:There is a wandb run already in progress:UserWarning"),  # asked for twice
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def test_mlflow_has_one_run_of_a_fit_its_resume_and_its_test(vitcls, fit_words, mlflow, report, tmp_path):
    overlay = f"--config={OVERLAYS / 'mlflow.yaml'}"
    for epochs in (1, 2):
        words = [*fit_words, overlay, "--resume=true", f"--trainer.max_epochs={epochs}"]
        status, _, err = vitcls(*words)
        assert status == 0, err
    run = tmp_path / "runs" / "run"
    assert vitcls("test", f"--ckpt_path={run}", overlay, "--trainer.accelerator=cpu")[0] == 0
    client = mlflow.MlflowClient()
    [there] = client.search_runs([client.get_experiment_by_name("vitcls").experiment_id])
    assert (there.info.run_name, there.info.status) == ("run", "FINISHED")
    assert there.data.params["model/lr"] == "0.001"
    assert len(client.get_metric_history(there.info.run_id, "val/accuracy")) == 2
    assert "test/accuracy" in there.data.metrics
    arguments = json.loads((run / "tracking.json").read_text())["MLFlowLogger"]
    attach_report([tracking.MLFlowLogger(**arguments)], report, 0)
    kept = {file.path for file in client.list_artifacts(there.info.run_id, "report/figures")}
    assert kept == {"report/figures/confusion.png", "report/figures/confusion.svg"}
    config = runs.read_config(run)["trainer"]["logger"][0]["init_args"]
    assert [config[name] for name in ("run_id", "run_name", "tracking_uri")] == [None] * 3
    runs.write_tracking(run, {"MLFlowLogger": {**arguments, "run_id": "gone"}})
    status, out, err = vitcls(*fit_words, overlay, "--resume=true", "--trainer.max_epochs=3")
    assert status == 0, err
    assert "MLflow's run of this folder is gone" in out
    assert len(client.search_runs([there.info.experiment_id])) == 2


def test_wandb_goes_on_with_the_run_and_gets_curves_and_figures(vitcls, fit_words, report, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    overlay = f"--config={OVERLAYS / 'wandb.yaml'}"
    for epochs in (1, 2):
        status, _, err = vitcls(*fit_words, overlay, "--resume=true", f"--trainer.max_epochs={epochs}")
        assert status == 0, err
        if epochs == 1:
            [first] = (tmp_path / "wandb").glob("offline-run-*")
            attach_report([tracking.WandbLogger(project="vitcls")], report, 3)
        wandb.finish()
    kept = runs.read_tracking(tmp_path / "runs" / "run")["WandbLogger"]["version"]
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [kept] * 2
    content = (first / f"run-{kept}.wandb").read_bytes()
    for key in (b"val/accuracy", b"train/loss", b"report/confusion", b"index.html", b"schedule_power"):
        assert key in content
