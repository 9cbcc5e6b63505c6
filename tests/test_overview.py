"""The list of runs: whole, unfinished and damaged ones, and what is no run."""

import io
import json
import logging
import os

import pytest
from rich.console import Console

from vitcls.__main__ import main
from vitcls.overview import table


@pytest.fixture(scope="module")
def trained(tiny_vit, colours, tmp_path_factory):
    """A folder with one real run, which was tested."""
    root = tmp_path_factory.mktemp("trained")
    words = [f"--model.checkpoint={tiny_vit}", "--model.adapter.method=rslora", f"--data.dataset={colours}"]
    words += ["--data.num_workers=0", "--run_name=one", f"--trainer.default_root_dir={root}", "--trainer.max_epochs=1"]
    common = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *words, *common]) == 0
    assert main(["test", f"--ckpt_path={root / 'one'}", *common]) == 0
    logging.getLogger("vitcls").handlers = []
    return root


@pytest.fixture
def listed(vitcls):
    """The runs of a folder as JSON tells them, by the names of their folders."""

    def listed(*folders):
        status, out, err = vitcls("runs", "--json", *folders)
        assert status == 0, err
        return {run["folder"].rpartition("/")[2]: run for run in json.loads(out)}

    return listed


def written(folder, **files):
    """A run folder with these files; `config` is of data, model and trainer."""
    folder.mkdir(parents=True)
    names = {"config": "config.yaml", "metrics": "metrics.json", "history": "metrics.csv", "best": "best.ckpt"}
    for name, content in files.items():
        (folder / names[name]).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def config(dataset="digits", epochs=10, **model):
    return {"data": {"dataset": dataset}, "model": model, "trainer": {"max_epochs": epochs}}


def test_a_trained_and_tested_run_is_told_as_it_was(listed, trained, tiny_vit, colours):
    run = listed(trained)["one"]
    figures = json.loads((trained / "one" / "metrics.json").read_text())
    assert (run["data"], run["model"], run["trained"]) == (str(colours), str(tiny_vit), "rslora")
    assert (run["monitor"], run["validation"]) == ("val/accuracy", figures["validation"]["val/accuracy"])
    assert (run["test"], run["test_reads"]) == (figures["test"]["test/accuracy"], 1)
    assert run["size"] == sum(file.stat().st_size for file in (trained / "one").rglob("*") if file.is_file())
    assert (run["state"], run["note"]) == ("finished", "")


def test_a_run_folder_itself_can_be_named_also_twice(vitcls, trained):
    _, out, _ = vitcls("runs", "--json", trained / "one", trained, trained / "one" / "..")
    assert len(json.loads(out)) == 1


def test_the_last_trained_is_first_and_a_later_test_changes_nothing(vitcls, tmp_path):
    for age, name in enumerate(["young", "middle", "old"]):
        run = written(tmp_path / name, config=config(), metrics={"validation": {"val/accuracy": 0.5}})
        os.utime(run / "config.yaml", (1e9 - age, 1e9 - age))
    (tmp_path / "old" / "metrics.json").touch()
    _, out, _ = vitcls("runs", tmp_path)
    assert [line.split("  ")[0].rpartition("/")[2] for line in out.splitlines()[1:]] == ["young", "middle", "old"]


def test_without_a_terminal_a_run_is_one_line_however_long(vitcls, tmp_path):
    long = "/".join(["somewhere"] * 30)
    both = {"validation": {"val/map": 0.87654}, "test": {"test/map": 0.5, "reads": 3}}
    written(tmp_path / "run", config=config(long, checkpoint="a/b", task="multilabel"), metrics=both)
    _, out, _ = vitcls("runs", tmp_path)
    header, line = out.splitlines()
    for text in (long, "a/b (all)", "map 0.8765", "0.5000 (read 3 times)"):
        assert text in line
    assert line.index("map 0.8765") == header.index("validation")


def test_a_terminal_gets_all_columns_in_its_width(monkeypatch, vitcls, tmp_path):
    shown = io.StringIO()
    monkeypatch.setattr(table, "Console", lambda: Console(file=shown, force_terminal=True, width=100))
    figures = {"validation": {"val/accuracy": 0.987654}}
    written(tmp_path / "[red]", config=config("a/b/photos", checkpoint="google/vit"), metrics=figures)
    monkeypatch.chdir(tmp_path)
    vitcls("runs", ".")
    for text in ("[red]", "photos", "vit (all)", "accuracy 0.9877"):
        assert text in shown.getvalue()
    assert "a/b" not in shown.getvalue()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"checkpoint": "x", "adapter": {"method": "dora"}}, ("x", "dora")),
        ({"checkpoint": "x", "adapter": None, "train": "head"}, ("x", "head")),
        ({"architecture": {"model_type": "swin"}, "adapter": None, "last_blocks": 2}, ("swin", "last 2 blocks")),
    ],
)
def test_what_was_trained_is_told(listed, tmp_path, model, told):
    written(tmp_path / "run", config=config(**model))
    run = listed(tmp_path)["run"]
    assert (run["model"], run["trained"]) == told


def test_sources_are_told_whichever_option_named_them(listed, tmp_path):
    written(tmp_path / "files", config={"data": {"train_files": ["a.csv", "b.csv"]}})
    written(tmp_path / "hub", config={"data": {"dataset": "glue", "config_name": "small"}})
    assert {name: run["data"] for name, run in listed(tmp_path).items()} == {
        "files": "a.csv b.csv",
        "hub": "glue small",
    }


def test_an_unfinished_run_tells_how_far_it_is(listed, tmp_path):
    rows = "epoch,step,train/loss,val/accuracy\n0,9,1.0,\n0,9,,0.8\n1,19,,0.7\n2,2"
    written(tmp_path / "some", config=config(), history=rows)
    written(tmp_path / "endless", config=config(epochs=-1), history=rows)
    written(tmp_path / "none", config=config(), history="epoch,step,train/loss\n0,9,1.0\n")
    written(tmp_path / "half", config=config(), history="epoch,step,val/accuracy\n0,9,0.8x")
    written(tmp_path / "new", config=config())
    found = listed(tmp_path)
    assert {run["state"] for run in found.values()} == {"unfinished"}
    assert (found["some"]["note"], found["some"]["validation"]) == ("unfinished, epoch 2 of 10", 0.8)
    assert found["endless"]["note"] == "unfinished, epoch 2"
    for name in ("none", "half", "new"):
        assert (found[name]["note"], found[name]["validation"]) == ("unfinished, not validated yet", None)


def test_figures_of_former_weights_are_not_those_of_now(listed, tmp_path):
    stale = {"validation": {"val/accuracy": 0.5}, "test": {"step": 3, "reads": 1}}
    written(tmp_path / "run", config=config(), metrics=stale)
    run = listed(tmp_path)["run"]
    assert (run["test"], run["note"]) == (None, "tested with former weights")


def chosen_by(monitor, mode, kind=list):
    callback = {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"monitor": monitor, "mode": mode}}
    found = config(checkpoint="x")
    found["trainer"]["callbacks"] = [callback] if kind is list else callback
    return found


def test_the_figure_is_that_which_chose(listed, tmp_path):
    figures = {"validation": {"val/loss": 0.7, "val/accuracy": 0.9, "val/map": 0.5}, "test": {"test/loss": 0.8}}
    written(tmp_path / "multilabel", config=config(task="multilabel", checkpoint="x"), metrics=figures)
    written(tmp_path / "soup", metrics={**figures, "soup": {"mean_of": ["a"]}}, best="")
    for kind in (list, dict):
        written(tmp_path / f"loss {kind.__name__}", config=chosen_by("val/loss", "min", kind), metrics=figures)
    written(tmp_path / "last", config=chosen_by("epoch", "max"), metrics=figures)
    history = "epoch,step,val/loss,val/accuracy\n0,9,0.5,0.8\n1,19,0.6,0.9\n"
    written(tmp_path / "unfinished", config=chosen_by("val/loss", "min"), history=history)
    assert {name: (run["monitor"], run["validation"], run["test"]) for name, run in listed(tmp_path).items()} == {
        "multilabel": ("val/map", 0.5, None),
        "soup": ("val/map", 0.5, None),
        "loss list": ("val/loss", 0.7, 0.8),
        "loss dict": ("val/loss", 0.7, 0.8),
        "last": ("val/accuracy", 0.9, None),
        "unfinished": ("val/loss", 0.5, None),
    }


def test_a_soup_says_what_it_is_the_mean_of(listed, tmp_path):
    parts = {"validation": {"val/map": 0.5}, "soup": {"mean_of": ["a", "b"], "left_out": []}}
    written(tmp_path / "soup", metrics=parts, best="")
    run = listed(tmp_path)["soup"]
    assert (run["model"], run["monitor"], run["validation"]) == ("mean of a, b", "val/map", 0.5)


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({"config": "a: [", "metrics": {"validation": {"val/accuracy": 0.5}}}, "config.yaml is damaged"),
        ({"config": "- 1"}, "config.yaml is damaged"),
        ({"config": config(), "metrics": '{"validation": '}, "metrics.json is damaged"),
        ({"config": config(), "metrics": "[1]"}, "metrics.json is damaged"),
        ({"config": config(), "metrics": {"validation": 1}}, "metrics.json is damaged"),
        ({"config": "a: [", "metrics": "{"}, "config.yaml is damaged; metrics.json is damaged"),
    ],
)
def test_a_damaged_run_is_listed_as_such_beside_whole_ones(listed, tmp_path, files, note):
    written(tmp_path / "whole", config=config(), metrics={"validation": {"val/accuracy": 0.5}})
    written(tmp_path / "hurt", **files)
    found = listed(tmp_path)
    assert (found["hurt"]["state"], found["hurt"]["note"]) == ("damaged", note)
    assert found["whole"]["state"] == "finished"


@pytest.mark.parametrize("model", ["x", None, {"adapter": [1], "architecture": "vit", "task": [1]}])
def test_a_configuration_that_no_run_would_write_is_listed(listed, tmp_path, model):
    figures = {"validation": {"val/accuracy": float("nan")}, "test": {"reads": "x"}}
    written(tmp_path / "run", config={"data": 3, "model": model, "trainer": 1}, metrics=figures)
    assert listed(tmp_path)["run"]["validation"] is None


def test_what_is_no_run_is_named_apart(vitcls, tmp_path):
    written(tmp_path / "run", config=config())
    (tmp_path / "check-run").mkdir()
    (tmp_path / "check-run" / "check.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file.txt").touch()
    _, out, _ = vitcls("runs", tmp_path)
    *_, checks, others = out.splitlines()
    assert len(out.splitlines()) == 4
    assert checks == f"checks of data: {tmp_path / 'check-run'}"
    assert others == f"no runs: {tmp_path / 'notes'}"


def test_where_there_is_no_run_that_is_said(vitcls, refuses, listed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert vitcls("runs")[:2] == (0, "No runs in checkpoints; python -m vitcls fit makes one.\n")
    assert listed() == {}
    assert "'nowhere' is no folder" in refuses("runs", "nowhere")


@pytest.mark.parametrize(
    ("seconds", "told"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7201, "2 h"), (2 * 86400, "2 d"), (4e7, "1 y")]
)
def test_an_age_is_told_in_its_largest_unit(seconds, told):
    assert table._age(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (22e6, "22 MB"), (3.14e9, "3.1 GB")]
)
def test_a_size_is_told_in_decimal_units(count, told):
    assert table._bytes(count) == told
