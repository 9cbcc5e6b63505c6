"""Reports of real runs of the tiny ViT, and of made-up answers."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import multilabel_options
from tests.killing import in_two_children
from tests.test_outputs import outputs_of, random_outputs
from vitcls.__main__ import main
from vitcls.outputs import read_outputs, write_outputs
from vitcls.pictures import write_pictures


@pytest.fixture(scope="module")
def trained(tiny_vit, colours, tmp_path_factory):
    """A run that was fitted and tested with reports."""
    root = tmp_path_factory.mktemp("reports")
    options = {"model.checkpoint": tiny_vit, "model.lr": 1e-3, "data.dataset": colours, "data.batch_size": 16}
    options |= {"data.num_workers": 0, "trainer.max_epochs": 2, "trainer.enable_progress_bar": "false"}
    options |= {"trainer.default_root_dir": root, "trainer.accelerator": "cpu"}
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    shutil.copytree(root / "run", root / "fitted")
    assert main(["test", "--ckpt_path", str(root / "run"), "--trainer.enable_progress_bar=false"]) == 0
    return root


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if "id" in attrs:
            self.ids.add(attrs["id"])

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(run):
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def test_the_answers_are_those_of_the_kept_weights(trained):
    figures = json.loads((trained / "run" / "metrics.json").read_text())
    report = json.loads((trained / "run" / "report" / "metrics.json").read_text())
    for role, stage in (("validation", "val"), ("test", "test")):
        assert report[role]["accuracy"] == pytest.approx(figures[role][f"{stage}/accuracy"], abs=1e-6)
        assert report[role]["balanced_accuracy"] == pytest.approx(figures[role][f"{stage}/macro_accuracy"], abs=1e-6)
        assert report[role]["uncalibrated"]["log_loss"] == pytest.approx(figures[role][f"{stage}/loss"], abs=1e-5)
        assert report[role]["step"] == figures["validation"]["step"]
    splits = json.loads((trained / "run" / "splits.json").read_text())
    for role in ("train", "validation"):
        assert read_outputs(trained / "run", role).ids.tolist() == splits[role]["rows"]


def test_a_test_answers_all_rows_however_many(trained, vitcls, tmp_path, monkeypatch):
    """After a fit only so many are asked about, and what was not asked is not unreadable."""
    monkeypatch.setattr("vitcls.answers.ASKED", 5)
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert vitcls("test", "--ckpt_path", run, "--report=true", "--trainer.enable_progress_bar=false")[0] == 0
    about = read_outputs(run, "test").about
    assert (about["asked"], about["rows"], about["unreadable"]) == (21, 21, 0)


def test_files_and_targets_belong_together(trained):
    outputs = read_outputs(trained / "run", "test")
    assert len(outputs) == 21
    for file, target in zip(outputs.files, outputs.targets, strict=True):
        assert f"/{outputs.labels[target]}/" in file


def test_the_page_needs_no_network_and_can_be_read_aloud(trained):
    text = page_of(trained / "run")
    page = Page(text)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", text)
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg") for image in page.all("img"))
    assert page.all("img")
    assert all(head.get("scope") for head in page.all("th"))
    assert {link["href"][1:] for link in page.all("a")} <= page.ids
    assert page.all("html")[0]["lang"] == "en"
    assert all(figure["aria-label"] for figure in page.all("figure"))
    assert "where the network looked" in text


def test_it_says_by_what_the_run_was_chosen_and_how_often_the_test_was_read(trained, vitcls):
    assert "No test data was read, so the figures are of the data that chose" in page_of(trained / "fitted")
    assert "chosen by val/accuracy of 6 validation images. The figures are of 21 test images, read once" in page_of(
        trained / "run"
    )
    shutil.copytree(trained / "run", trained / "again")
    vitcls("test", "--ckpt_path", trained / "again", "--report=true", "--trainer.enable_progress_bar=false")
    assert "read 2 times for this run" in page_of(trained / "again")


def test_a_test_without_a_report_is_a_reading_as_well(trained, vitcls, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert vitcls("test", "--ckpt_path", run, "--report=false", "--trainer.enable_progress_bar=false")[0] == 0
    assert vitcls("report", run)[0] == 0
    assert "read 2 times for this run" in page_of(run)
    (run / "outputs" / "test.parquet").unlink()
    assert vitcls("report", run)[0] == 0
    assert "No answers of these weights to test data were kept, so the figures are of the data that chose" in page_of(
        run
    )


CHECKPOINT = "vitcls.callbacks.RunCheckpoint"


@pytest.mark.parametrize(
    ("config", "kept", "says"),
    [
        ({}, {}, "The weights were chosen by val/accuracy. The figures are of 60 test"),
        ({"callbacks": {"class_path": CHECKPOINT, "init_args": {"monitor": "val/loss"}}}, {}, "chosen by val/loss."),
        ({"callbacks": [{"class_path": CHECKPOINT, "init_args": {"monitor": "epoch"}}]}, {}, "are the last ones"),
        ({"callbacks": None}, {"checkpoint": "last.ckpt", "epoch": 3}, "(epoch 3) are the last ones, chosen by no"),
    ],
)
def test_it_says_what_chose_the_weights(config, kept, says, vitcls, tmp_path):
    write_outputs(tmp_path, random_outputs())
    (tmp_path / "config.yaml").write_text(json.dumps({"trainer": config}))
    (tmp_path / "metrics.json").write_text(json.dumps({"validation": {"step": 7, **kept}}))
    assert vitcls("report", tmp_path)[0] == 0
    assert says in page_of(tmp_path)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"checkpoint": "a/b", "train": "bias"}, "a/b, the head and biases, on"),
        ({"checkpoint": "/x/b", "last_blocks": 2, "train": "all"}, "b, its last 2 blocks, on"),
        ({"architecture": {"model_type": "vit"}, "adapter": {"method": "dora"}}, "vit, dora adapter, on"),
    ],
)
def test_it_says_what_was_trained(model, says, vitcls, tmp_path):
    write_outputs(tmp_path, random_outputs())
    (tmp_path / "config.yaml").write_text(json.dumps({"model": model}))
    assert vitcls("report", tmp_path)[0] == 0
    assert f"<p>{says}" in page_of(tmp_path)


def test_a_report_that_cannot_be_made_or_written_spoils_no_test(trained, vitcls, refuses, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / "outputs" / "validation.parquet").write_bytes(b"damaged")
    words = ("test", "--ckpt_path", run, "--report=true", "--trainer.enable_progress_bar=false")
    status, out, err = vitcls(*words)
    assert (status, err) == (0, "")
    assert "there is no report: " in out
    assert "validation.parquet is damaged" in out
    assert json.loads((run / "metrics.json").read_text())["test"]["reads"] == 2
    (run / "outputs" / "validation.parquet").unlink()
    shutil.rmtree(run / "report")
    (run / "report").touch()
    assert "could not be written" in refuses("report", run)
    assert "could not be written" in refuses("report", run, trained / "run", "--output", run / "report")


def test_it_is_made_again_without_torch_and_is_the_same(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    code = "import sys; from vitcls.__main__ import main; status = main(['report', sys.argv[1]]); "
    code += "print(status, sorted({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    (run / "report" / "index.html").unlink()
    said = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=100, check=True)
    assert said.stdout.splitlines()[-1] == "0 []"
    assert page_of(run) == page_of(trained / "run")
    assert (run / "report" / "metrics.json").read_text() == (trained / "run" / "report" / "metrics.json").read_text()


def test_how_it_was_trained_is_there(trained):
    (session,) = json.loads((trained / "run" / "sessions.json").read_text())
    assert session["seconds"] > 0
    assert session["images_per_second"] > 0
    assert 0 <= session["data_wait"] <= 1
    assert session["machine"]["torch"] in page_of(trained / "run")


def test_the_time_of_a_killed_training_is_not_that_until_its_end(vitcls, fit_words, tmp_path):
    """It was killed after its last step; a resume, whenever that is, writes the rest of the folder."""
    words = [*fit_words, "--trainer.max_epochs=1", "--resume=true"]
    assert vitcls(*words)[0] == 0
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run / "model")
    (killed,) = json.loads((run / "sessions.json").read_text())
    killed = {name: killed[name] for name in ("started", "command", "machine")}
    (run / "sessions.json").write_text(json.dumps([killed]))
    assert vitcls(*words)[0] == 0
    assert (run / "model").is_dir()
    assert json.loads((run / "sessions.json").read_text()) == [killed]


def test_without_a_report_nothing_of_it_is_written(vitcls, fit_words, tmp_path):
    assert vitcls(*fit_words, "--trainer.max_epochs=1")[0] == 0
    assert vitcls("test", "--ckpt_path", tmp_path / "runs" / "run", "--report=false")[0] == 0
    assert not {"report", "outputs"} & {file.name for file in (tmp_path / "runs" / "run").iterdir()}


def test_a_run_without_answers_is_refused(refuses, tmp_path):
    assert "does not exist" in refuses("report", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "is not the folder of a run" in refuses("report", tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").write_text("{}")
    assert "holds no answers of its model" in refuses("report", tmp_path / "empty")
    assert "--outptu" in refuses("report", tmp_path, "--outptu=x")


@pytest.mark.parametrize("name", ["metrics.json", "sessions.json"])
def test_a_record_that_holds_something_else_is_damaged(name, refuses, tmp_path):
    write_outputs(tmp_path, random_outputs())
    (tmp_path / name).write_text('"x"')
    assert f"{name} is damaged (it holds a str" in refuses("report", tmp_path)


def test_answers_of_other_weights_are_left_out_and_said(trained, vitcls, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    content = json.loads((run / "metrics.json").read_text())
    content["validation"]["step"] += 1
    (run / "metrics.json").write_text(json.dumps(content))
    status, _, err = vitcls("report", run)
    assert (status, "holds no answers" in err) == (2, True)
    test = read_outputs(run, "test")
    test.about["step"] += 1
    write_outputs(run, test)
    assert vitcls("report", run)[0] == 0
    assert "Answers to validation were kept of other weights" in page_of(run)


def test_names_are_text_and_not_markup(vitcls, tmp_path):
    labels = ["<script>alert(1)</script>", "$a_b$", "c & d"]
    outputs = random_outputs(classes=3, labels=labels)
    outputs.files[:] = [f"/p/<img src=x onerror=alert({n})>.jpg" for n in range(len(outputs))]
    write_outputs(tmp_path, outputs)
    assert vitcls("report", tmp_path)[0] == 0
    assert "<script>alert" not in page_of(tmp_path)
    assert "<img src=x" not in page_of(tmp_path)


@pytest.mark.parametrize(
    "outputs",
    [
        random_outputs(classes=1),
        random_outputs(images=1),
        random_outputs(images=300, classes=120),
        outputs_of(5 * np.eye(3)[np.arange(9) % 3], np.arange(9) % 3),
        outputs_of(random_outputs().logits, np.full(60, 2)),
        random_outputs("multilabel", temperature=1.0),
        outputs_of(np.zeros((5, 2)), np.zeros((5, 2), bool), task="multilabel", temperature=1.0),
    ],
    ids=["one class", "one image", "many classes", "no mistake", "one class occurs", "multilabel", "no label"],
)
def test_odd_answers_have_a_report_as_well(outputs, vitcls, tmp_path):
    write_outputs(tmp_path, outputs)
    write_pictures(tmp_path, "test", {"image": {}})
    status, _, err = vitcls("report", tmp_path)
    assert (status, err) == (0, "")
    json.loads((tmp_path / "report" / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_of_multilabel_data(vitcls, tiny_vit, scenes, tmp_path):
    assert vitcls(*multilabel_options(tiny_vit, scenes, tmp_path, epochs=2), "--report=true")[0] == 0
    report = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]
    assert report["validation"]["map"] == pytest.approx(figures["val/map"], abs=1e-6)
    assert report["validation"]["log_loss"] == pytest.approx(figures["val/loss"], abs=1e-5)
    headlines = re.findall("<dt>(.+?)</dt>", page_of(tmp_path / "run").partition("<h2")[0])
    assert headlines == ["map", "f1 macro", "log loss"]


def test_the_temperature_is_applied_by_predict(trained, vitcls, colours, tmp_path):
    test = read_outputs(trained / "run", "test")
    assert test.temperature != 1
    out = tmp_path / "p.csv"
    words = ("predict", "--ckpt_path", trained / "run", "--data.predict", colours / "test", "--output", out)
    assert vitcls(*words, "--trainer.enable_progress_bar=false")[0] == 0
    with out.open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    for name, scores in zip(test.files, test.probabilities(), strict=True):
        assert float(rows[name]["score"]) == pytest.approx(scores.max(), abs=2e-6)
    assert vitcls(*words, "--model.temperature=1", "--trainer.enable_progress_bar=false")[0] == 0
    with out.open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    for name, scores in zip(test.files, test.probabilities(temperature=1), strict=True):
        assert float(rows[name]["score"]) == pytest.approx(scores.max(), abs=2e-6)


def test_a_temperature_that_was_given_is_not_said_to_be_chosen(trained, vitcls, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert "The validation images chose the temperature; <code>predict" in page_of(run)
    assert vitcls("test", "--ckpt_path", run, "--report=true", "--model.temperature=3")[0] == 0
    assert "The temperature was given with <code>--model.temperature</code>" in page_of(run)
    assert json.loads((run / "report" / "metrics.json").read_text())["test"]["temperature"] == 3


def test_several_views_are_said(trained, vitcls, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert "mean over several views" not in page_of(run)
    assert vitcls("test", "--ckpt_path", run, "--report=true", "--data.tta=flip")[0] == 0
    assert "(<code>--data.tta flip</code>)" in page_of(run)


def test_each_test_set_has_its_own_count_and_validation_images_are_no_test(trained, vitcls, colours, tmp_path):
    run = shutil.copytree(trained / "fitted", tmp_path / "run")
    shutil.copytree(colours / "test", tmp_path / "other")
    next((tmp_path / "other").rglob("*.jpg")).unlink()
    test, other = (["test", "--ckpt_path", run, *words] for words in ([], ["--data.test_dir", tmp_path / "other"]))
    assert "now been read" not in vitcls(*test)[1] + vitcls(*other)[1]
    assert "now been read 2 times" in vitcls(*test)[1]
    assert sorted(json.loads((run / "metrics.json").read_text())["test"]["reads_of"].values()) == [1, 2]
    fit = json.loads((run / "splits.json").read_text())
    test_split = read_outputs(trained / "run", "test")
    fit["validation"] = {"source": "x", "fingerprint": test_split.about["fingerprint"], "rows": test_split.ids.tolist()}
    (run / "splits.json").write_text(json.dumps(fit))
    out = vitcls(*test, "--report=true")[1]
    assert "these rows chose the weights" in out
    assert "They are among those that chose the weights" in page_of(run)


def test_a_test_that_could_not_be_counted_is_refused_before_it_reads(trained, refuses, monkeypatch, tmp_path):
    run = shutil.copytree(trained / "fitted", tmp_path / "run")
    (run / "metrics.json").write_text("[")
    assert "metrics.json is damaged" in refuses("test", "--ckpt_path", run)
    real = os.access  # by which root may write everywhere
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(run) and real(path, mode))
    shutil.copy(trained / "fitted" / "metrics.json", run)
    assert "would not be counted" in refuses("test", "--ckpt_path", run)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.temperature=0"], "--model.temperature"),
        (["--model.temperature=2", "--model.task=multilabel"], "belongs to --model.task multiclass"),
    ],
)
def test_temperatures_that_are_none_are_refused(words, says, refuses, fit_words):
    assert says in refuses(*fit_words, *words)


# -- comparison -----------------------------------------------------------------------------


def made_up(run, right, seed=0, config=None, **how):
    """A run whose answers to 100 images are right or wrong as said."""
    run.mkdir()
    targets = np.arange(100) % 4
    answers = np.where(right, targets, (targets + 1) % 4)
    write_outputs(run, outputs_of(3 * np.eye(4)[answers], targets, **how))
    (run / "config.yaml").write_text(json.dumps(config or {"model": {"lr": seed}}))
    return run


def test_paired_differences_are_mcnemars(vitcls, tmp_path):
    first = np.arange(100) >= 20  # 80 right
    second = first.copy()
    second[:12], second[90:93] = True, False
    a, b = made_up(tmp_path / "a", first, 1), made_up(tmp_path / "b", second, 2)
    assert vitcls("report", a, b, "--output", tmp_path / "both")[0] == 0
    found = json.loads((tmp_path / "both" / "comparison.json").read_text())
    pair = found["against_first"]["b"]
    assert (pair["images"], pair["first_only"], pair["second_only"]) == (100, 3, 12)
    assert pair["difference"] == pytest.approx(0.09)
    assert pair["p"] == pytest.approx(0.03515625)  # 2 * P(at most 3 of 15 tosses)
    assert pair["interval"][0] < 0.09 < pair["interval"][1]
    assert found["differing"] == {"model.lr": {"a": 1, "b": 2}}
    assert found["runs"]["a"]["accuracy"] == pytest.approx(0.8)
    page = (tmp_path / "both" / "index.html").read_text()
    assert "+0.090" in page


def test_equal_runs_differ_by_chance_alone(vitcls, tmp_path):
    a, b = (made_up(tmp_path / name, np.arange(100) > 9) for name in "ab")
    assert vitcls("report", a, b, "--output", tmp_path / "both")[0] == 0
    found = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert found["against_first"]["b"]["p"] == 1
    assert found["differing"] == {}


def test_the_figure_of_each_run_that_chose_has_one_panel(vitcls, tmp_path):
    callback = {"class_path": CHECKPOINT, "init_args": {"monitor": "val/loss"}}
    configs = [{"trainer": {"callbacks": [callback]}}] * 2 + [{}]
    folders = [made_up(tmp_path / n, np.arange(100) > 9, config=c) for n, c in zip("abc", configs, strict=True)]
    for count, panels in ((2, ["val/loss"]), (3, ["val/loss", "val/accuracy"])):
        assert vitcls("report", *folders[:count], "--output", tmp_path / "both")[0] == 0
        page = (tmp_path / "both" / "index.html").read_text()
        assert re.findall(r">(val/\w+)</text>", page) == panels


def test_runs_on_other_images_are_not_compared(vitcls, tmp_path):
    a = made_up(tmp_path / "a", np.arange(100) > 9)
    b = made_up(tmp_path / "b", np.arange(100) > 9, fingerprint="other")
    assert vitcls("report", a, b, "--output", tmp_path / "both")[0] == 0
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["role"] is None
    assert "measured on different images" in (tmp_path / "both" / "index.html").read_text()


def test_other_images_of_the_same_names_are_other_images(vitcls, tmp_path):
    a = made_up(tmp_path / "a", np.arange(100) > 9, sizes="1")
    b = made_up(tmp_path / "b", np.arange(100) > 9, sizes="2")
    assert vitcls("report", a, b, "--output", tmp_path / "both")[0] == 0
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["role"] is None


def test_images_of_the_same_names_and_labels_are_told_apart_by_their_sizes(trained, vitcls, colours, tmp_path):
    other = shutil.copytree(colours / "test", tmp_path / "other")
    first = min(other.rglob("*.jpg"))
    first.write_bytes(first.read_bytes() + b"\0")  # what follows the picture is not decoded
    found = []
    for number, folder in enumerate((colours / "test", colours / "test", other)):
        run = shutil.copytree(trained / "fitted", tmp_path / f"run{number}")
        vitcls("test", "--ckpt_path", run, "--data.test_dir", folder, "--report=true")
        found.append(read_outputs(run, "test").about)
    assert found[0]["sizes"] == found[1]["sizes"] != found[2]["sizes"]
    assert found[0]["fingerprint"] == found[2]["fingerprint"]


def test_comparisons_that_make_no_sense_are_refused(refuses, tmp_path):
    a = made_up(tmp_path / "a", np.arange(100) > 9)
    b = made_up(tmp_path / "b", np.arange(100) > 9, labels=["w", "x", "y", "z"])
    assert "other classes" in refuses("report", a, b, "--output", tmp_path / "both")
    assert "named twice" in refuses("report", a, a)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    c = made_up(tmp_path / "c", np.arange(100) > 9)
    assert "holds something else than a comparison" in refuses("report", a, c, "--output", tmp_path / "site")
    assert "--output is for the comparison" in refuses("report", a, "--output", tmp_path / "both")
    assert "is the folder of a run" in refuses("report", a, c, "--output", c)


# -- several processes ----------------------------------------------------------------------


def test_two_processes_answer_as_one(fit_words, vitcls, tmp_path):
    words = [word for word in fit_words if not word.startswith("--report")]
    log = tmp_path / "log.txt"
    assert in_two_children([*words, "--trainer.max_epochs=1"], log) == 0, log.read_text()
    run = tmp_path / "runs" / "run"
    splits = json.loads((run / "splits.json").read_text())
    for role in ("train", "validation"):
        assert read_outputs(run, role).ids.tolist() == splits[role]["rows"]
    alone = shutil.copytree(run, tmp_path / "alone")
    words = ["--data.eval_limit=20", "--data.eval_batch_size=3", "--trainer.accelerator=cpu"]
    test = ["test", "--ckpt_path", run, *words, "--trainer.enable_progress_bar=false"]
    assert in_two_children(test, log) == 0, log.read_text()
    assert vitcls("test", "--ckpt_path", alone, *words, "--report=true")[0] == 0
    one, two = read_outputs(alone, "test"), read_outputs(run, "test")
    assert two.ids.tolist() == one.ids.tolist()
    assert len(two) == 20
    np.testing.assert_allclose(two.logits, one.logits, atol=1e-5)
    reports = [json.loads((folder / "report" / "metrics.json").read_text())["test"] for folder in (alone, run)]
    assert reports[1]["accuracy"] == reports[0]["accuracy"]
    assert reports[1]["log_loss"] == pytest.approx(reports[0]["log_loss"], abs=1e-6)
