"""Exported folders: the answers of the run, through every verb and through other people's libraries."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from peft import PeftConfig, PeftModel
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from tests.conftest import CLASSES, multilabel_options
from vitcls.__main__ import main
from vitcls.checkpoints import INSTANTIATOR, RECORD, Checkpoint, read_checkpoint
from vitcls.errors import UserError
from vitcls.export.formats import FORMATS
from vitcls.export.gate import check_drop, check_exact, measured
from vitcls.export.place import half_made, place_for
from vitcls.manifest import MANIFEST, check_files, read_manifest, write_manifest
from vitcls.models import exported
from vitcls.models.exported import ExportedNetwork

HAS_OPENVINO = find_spec("openvino") is not None and find_spec("nncf") is not None
NAMES = [name for name in FORMATS if HAS_OPENVINO or not name.startswith("openvino")]
GRAPHS = [name for name in NAMES if name not in ("huggingface", "adapter")]


@pytest.fixture(scope="session")
def run(tiny_vit, colours, tmp_path_factory) -> Path:
    """A run with an adapter, none of whose answers is sure, and all of its exports; for reading only."""
    root = tmp_path_factory.mktemp("exporting")
    words = ["--model.lr=3e-3", "--model.adapter.r=4", "--data.num_workers=0", "--trainer.max_epochs=2"]
    words += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false", "--report=false"]
    words += ["--trainer.accelerator=cpu", "--data.validation_fraction=0.4"]
    assert main(["fit", f"--model.checkpoint={tiny_vit}", f"--data.dataset={colours}", *words]) == 0
    for name in NAMES:
        assert main(["export", str(root / "run"), "--to", name, "--max_drop", "10"]) == 0
    return root / "run"


def temperature(run: Path) -> float:
    return read_checkpoint(Checkpoint(run / "best.ckpt", run))[RECORD]["temperature"]


def answers(vitcls, path: Path, photos: Path, output: Path, *words: str) -> list[dict[str, str]]:
    said = ["--ckpt_path", path, "--data.predict", photos, "--output", output, "--data.num_workers=0", *words]
    status, _, err = vitcls("predict", *said)
    assert status == 0, err
    with output.open() as file:
        return list(csv.DictReader(file))


def trusting(name: str) -> list[str]:
    return ["--model.trust_exported=true"] if name == "torch" else []


def test_the_logits_of_the_run_are_no_probabilities_yet(run):
    """Or nothing below would show that they are divided."""
    assert abs(temperature(run) - 1) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_gate_is_in_the_manifest(run, name):
    manifest = read_manifest(run / "exported" / name)
    assert manifest.labels == list(CLASSES)
    assert manifest.temperature == temperature(run)
    gate = manifest.gate
    assert gate["images"] == 24
    assert gate["images_per_second_exported"] > 0
    if FORMATS[name].is_exact:
        assert gate["largest_difference"] < 1e-4
        assert gate["agreement"] == 1
        assert gate["accuracy_exported"] == gate["accuracy_trained"]


@pytest.mark.parametrize("name", NAMES)
def test_validate_and_predict_take_it_alone(run, vitcls, colours, tmp_path, name):
    folder = run / "exported" / name
    status, out, err = vitcls("validate", "--ckpt_path", folder, "--data.num_workers=0", *trusting(name))
    assert status == 0, err
    accuracy = json.loads((run / "metrics.json").read_text())["validation"]["val/accuracy"]
    if FORMATS[name].is_exact:
        assert f"{accuracy}"[:8] in out
    theirs = answers(vitcls, run, colours / "test", tmp_path / "run.csv")
    ours = answers(vitcls, folder, colours / "test", tmp_path / "exported.csv", *trusting(name))
    assert [row["file"] for row in ours] == [row["file"] for row in theirs]
    tolerance = 1e-5 if FORMATS[name].is_exact else 0.05
    scores = [[float(row["score"]) for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=0, atol=tolerance)
    if FORMATS[name].is_exact:
        assert [row["label"] for row in ours] == [row["label"] for row in theirs]


def test_transformers_pipeline_gives_its_answers(run, vitcls, colours, tmp_path):
    theirs = answers(vitcls, run, colours / "test", tmp_path / "run.csv")
    classify = pipeline("image-classification", str(run / "exported" / "huggingface"), device="cpu")
    for row in theirs:
        best = classify(row["file"])[0]
        assert best["label"] == row["label"]
        assert best["score"] == pytest.approx(float(row["score"]), abs=2e-3)  # its resize rounds otherwise


def test_peft_gives_the_answers_of_the_adapter(run, vitcls, colours, tmp_path):
    folder = run / "exported" / "adapter"
    adapter = PeftConfig.from_pretrained(folder)
    base = AutoModelForImageClassification.from_pretrained(
        adapter.base_model_name_or_path, config=AutoConfig.from_pretrained(folder), ignore_mismatched_sizes=True
    )
    model, processor = PeftModel.from_pretrained(base, folder).eval(), AutoImageProcessor.from_pretrained(folder)
    row = answers(vitcls, run, colours / "test", tmp_path / "run.csv")[0]
    with torch.no_grad():
        scores = model(**processor(Image.open(row["file"]), return_tensors="pt")).logits.softmax(-1)[0]
    assert model.config.id2label[int(scores.argmax())] == row["label"]
    assert float(scores.max()) == pytest.approx(float(row["score"]), abs=2e-3)


@pytest.mark.parametrize("count", [1, 7])
def test_a_graph_takes_any_number_of_images_and_tells_what_it_is(run, count):
    file = run / "exported" / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(file)
    logits = session.run(["logits"], {"pixel_values": np.zeros((count, 3, 32, 32), np.float32)})[0]
    assert logits.shape == (count, 3)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["vitcls.labels"]) == list(CLASSES)
    assert json.loads(told["vitcls.image"])["size"] == 32
    assert onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_of_bytes_gives_the_same(run, vitcls, colours, tmp_path, name):
    folder = tmp_path / name
    words = ["--to", name, "--input", "uint8", "--output", folder, "--max_drop", "10"]
    assert vitcls("export", run, *words)[0] == 0
    manifest = read_manifest(folder)
    assert manifest.takes == "uint8"
    assert manifest.run is None  # it does not lie in the run
    theirs = answers(vitcls, run / "exported" / name, colours / "test", tmp_path / "f.csv", *trusting(name))
    ours = answers(vitcls, folder, colours / "test", tmp_path / "u.csv", *trusting(name))
    scores = [[float(row["score"]) for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5 if FORMATS[name].is_exact else 0.05)


def test_an_answer_in_integers_does_not_depend_on_the_images_beside_it(run, vitcls, colours, tmp_path):
    folder = run / "exported" / "onnx-int8"
    assert read_manifest(folder).gate["quantised"]["chosen"] == "dynamic"  # of which ranges are of a batch
    alone = answers(vitcls, folder, colours / "test", tmp_path / "1.csv", "--data.eval_batch_size=1")
    together = answers(vitcls, folder, colours / "test", tmp_path / "7.csv", "--data.eval_batch_size=7")
    assert alone == together


def test_a_run_of_whole_weights_has_no_adapter_to_export(trained, vitcls, refuses):
    run = trained()
    assert "export its whole weights, with --to huggingface" in refuses("export", run, "--to", "adapter")
    assert not (run / "exported" / "adapter").exists()
    assert vitcls("export", run, "--to", "onnx")[0] == 0


def test_of_many_labels_the_ranking_is_compared_and_the_thresholds_go_along(tiny_vit, scenes, tmp_path, vitcls):
    assert vitcls(*multilabel_options(tiny_vit, scenes, tmp_path, epochs=2))[0] == 0
    multilabel_run = tmp_path / "run"
    assert vitcls("export", multilabel_run, "--to", "onnx")[0] == 0
    manifest = read_manifest(multilabel_run / "exported" / "onnx")
    assert manifest.task == "multilabel"
    assert manifest.thresholds == json.loads((multilabel_run / "thresholds.json").read_text())
    assert manifest.gate["map_exported"] == pytest.approx(manifest.gate["map_trained"], abs=1e-6)
    status, _, err = vitcls("validate", "--ckpt_path", multilabel_run / "exported" / "onnx")
    assert status == 0, err


# -- what is refused ----------------------------------------------------------------------------


def differing(by: float, count: int = 10):
    """Two networks whose first logit differs, and images of class 0."""
    logits = torch.tensor([[1.0, 0.5]]).repeat(count, 1)
    other = logits + torch.tensor([by, 0.0])
    return lambda _: logits, lambda _: other, [(torch.zeros(count, 3, 2, 2), torch.zeros(count, dtype=torch.long))]


def test_the_gate_lets_nothing_through_that_differs():
    same = measured(*differing(1e-4), "multiclass")
    check_exact(same)
    with pytest.raises(UserError, match=r"differs by up to 0\.01 \(at most 0\.001"):
        check_exact(measured(*differing(1e-2), "multiclass"))
    with pytest.raises(UserError, match="nan"):
        check_exact(measured(*differing(float("nan")), "multiclass"))
    check_drop(measured(*differing(-0.4), "multiclass"), 1.0)  # still the same class
    with pytest.raises(UserError, match=r"lost 100\.00 percentage points on 10 images, and --max_drop 1"):
        check_drop(measured(*differing(-0.6), "multiclass"), 1.0)


def test_a_refused_export_leaves_the_one_before_it(run, vitcls, refuses, tmp_path):
    before = shutil.copytree(run / "exported" / "onnx", tmp_path / "onnx")
    digests = read_manifest(before).files
    told = refuses("export", run, "--output", before, "--validation_dir", tmp_path / "nothing")
    assert "nothing" in told
    assert read_manifest(before).files == digests
    assert sorted(f.name for f in tmp_path.iterdir()) == ["onnx"]
    assert vitcls("export", run, "--output", before)[0] == 0


def test_a_folder_of_something_else_is_not_overwritten(run, refuses, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert "is no exported folder; name another" in refuses("export", run, "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("manifest", ['{"name": "My web page"}', None])
def test_what_lies_in_a_folder_with_a_manifest_is_not_overwritten(run, refuses, tmp_path, manifest):
    """Neither where it is another program's, nor where an export was made and something was put beside it."""
    mine = Path(shutil.copytree(run / "exported" / "onnx", tmp_path / "mine"))
    if manifest is not None:
        (mine / MANIFEST).write_text(manifest)
    (mine / "thesis.txt").write_text("all of it")
    told = refuses("export", run, "--output", mine)
    assert "name another" in told
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_the_empty_folder_that_one_stands_in_is_a_place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = place_for(".", Checkpoint(tmp_path / "best.ckpt", None), "onnx")
    with half_made(place) as folder:
        (folder / "model.onnx").touch()
    assert [str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()] == ["here/model.onnx"]


@pytest.mark.parametrize("name", ["onnx", "huggingface"])
def test_a_file_that_was_changed_is_refused(run, refuses, colours, tmp_path, name):
    folder = Path(shutil.copytree(run / "exported" / name, tmp_path / name))
    file = folder / read_manifest(folder).file
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    words = ["--data.predict", colours / "test", "--output", tmp_path / "p.csv"]
    assert "is not what was exported" in refuses("predict", "--ckpt_path", folder, *words)
    file.unlink()
    assert f"{file} is missing" in refuses("predict", "--ckpt_path", folder, *words)


def test_a_format_that_executes_what_it_holds_must_be_trusted(run, refuses):
    told = refuses("validate", "--ckpt_path", run / "exported" / "torch")
    assert "--model.trust_exported true" in told


@pytest.mark.parametrize("said", [{"exported": "somewhere"}, {"trust_exported": True}])
def test_a_checkpoint_cannot_say_that_an_export_is_to_be_trusted(trained, refuses, said):
    run = trained()
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["hyper_parameters"] |= said
    torch.save(content, run / "best.ckpt")
    for words in (["validate", "--ckpt_path", run], ["export", run]):
        assert f"says --model.{next(iter(said))} itself" in refuses(*words)


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_a_checkpoint_cannot_name_what_makes_the_model(trained, refuses, part):
    run = trained()
    content = torch.load(run / "best.ckpt", weights_only=True)
    assert content[part]["_instantiator"] == INSTANTIATOR  # of Lightning
    content[part]["_instantiator"] = "os.system"
    torch.save(content, run / "best.ckpt")
    assert "names code that Lightning would run" in refuses("validate", "--ckpt_path", run)


@pytest.mark.parametrize(("field", "value"), [("resize", "stretch"), ("interpolation", "lanczos"), ("sharpness", 2)])
def test_preprocessing_that_there_is_not_is_refused(run, refuses, tmp_path, field, value):
    folder = Path(shutil.copytree(run / "exported" / "onnx", tmp_path / "onnx"))
    content = json.loads((folder / MANIFEST).read_text())
    content["image"][field] = value
    (folder / MANIFEST).write_text(json.dumps(content))
    assert field in refuses("predict", "--ckpt_path", folder, "--data.predict", folder)


def test_the_ranking_of_no_labels_proves_nothing():
    images = [(torch.zeros(2, 3, 2, 2), torch.zeros(2, 2))]
    with pytest.raises(UserError, match="No validation image has any label"):
        measured(lambda _: torch.zeros(2, 2), lambda _: torch.zeros(2, 2), images, "multilabel")
    images = [(torch.zeros(2, 3, 2, 2), torch.ones(2, 2))]
    found = measured(lambda _: torch.zeros(2, 2), lambda _: torch.full((2, 2), torch.nan), images, "multilabel")
    with pytest.raises(UserError, match="nan"):
        check_exact(found)


def test_a_network_that_its_runtime_cannot_load_is_told(run, tmp_path):
    folder = Path(shutil.copytree(run / "exported" / "torch", tmp_path / "torch"))
    (folder / "model.pt2").write_bytes(b"of another version")
    write_manifest(folder, read_manifest(folder))
    with pytest.raises(UserError, match=r"model\.pt2 cannot be loaded \(.*it was made with torch .*Export again"):
        ExportedNetwork(folder, trusts=True)


def test_a_folder_of_weights_is_no_graph(run):
    with pytest.raises(UserError, match=r"was exported as 'huggingface', and it takes onnx, .*--ckpt_path"):
        ExportedNetwork(run / "exported" / "huggingface")


def test_exports_with_other_weights_beside_the_graph_are_not_the_same(run, tmp_path):
    """OpenVINO's graph does not change with them."""
    folder = Path(shutil.copytree(run / "exported" / "onnx", tmp_path / "onnx"))
    digests = []
    for weights in (b"1", b"2"):
        (folder / "model.bin").write_bytes(weights)
        write_manifest(folder, read_manifest(folder))
        digests.append(ExportedNetwork(folder).digest.tolist())
    assert digests[0] != digests[1]


def test_a_manifest_cannot_name_a_file_outside_of_its_folder(run, tmp_path):
    manifest = read_manifest(run / "exported" / "onnx")
    (tmp_path / "secret").touch()
    for name in ("../secret", str(tmp_path / "secret")):
        manifest.files[name] = "0"
        with pytest.raises(UserError, match=f"names '{name}', which is not in the folder"):
            check_files(run / "exported" / "onnx", manifest)
        del manifest.files[name]


def test_an_exported_network_is_not_changed(run, refuses):
    told = refuses("validate", "--ckpt_path", run / "exported" / "onnx", "--model.image_size", "64")
    assert "--model.image_size changes a network" in told


def test_a_damaged_manifest_is_told(run, refuses, tmp_path):
    folder = Path(shutil.copytree(run / "exported" / "onnx", tmp_path / "onnx"))
    (folder / MANIFEST).write_text('{"format": "onnx"')
    assert "manifest.json cannot be read" in refuses("validate", "--ckpt_path", folder)
    (folder / MANIFEST).write_text('{"format": "onnx", "files": {}}')
    assert "its keys are not those of a manifest: alone, file, gate" in refuses("validate", "--ckpt_path", folder)
    whole = json.loads((run / "exported" / "onnx" / MANIFEST).read_text())
    for name in ("labels", "thresholds", "made_of", "run", "temperature"):
        (folder / MANIFEST).write_text(json.dumps({**whole, name: True if name != "temperature" else "1"}))
        assert f"its {name} is " in refuses("validate", "--ckpt_path", folder)


def test_an_exported_folder_is_finished(run, refuses, colours):
    folder = run / "exported" / "onnx"
    assert "validate, test, predict take, and fit does not" in refuses("fit", "--ckpt_path", folder)
    assert "and soup does not" in refuses("soup", folder, run)
    assert "and export does not" in refuses("export", folder)
    told = refuses("fit", "--model.exported", folder, "--data.dataset", colours, "--trainer.fast_dev_run=true")
    assert "cannot be trained; give --model.checkpoint" in told


def test_words_that_are_wrong(run, refuses, monkeypatch):
    assert "--to 'onxx' is no format (did you mean 'onnx'?)" in refuses("export", run, "--to", "onxx")
    assert "--input is 'int4'" in refuses("export", run, "--input", "int4")
    assert "--input belongs to graphs" in refuses("export", run, "--to", "huggingface", "--input", "uint8")
    assert "--max_drop is 101" in refuses("export", run, "--max_drop", "101")
    assert "does not exist" in refuses("export", run / "nowhere")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime: pip install 'vitcls[onnx]'" in refuses("export", run)


def test_an_exported_folder_elsewhere_needs_its_data_named(run, vitcls, refuses, colours, tmp_path):
    folder = shutil.copytree(run / "exported" / "onnx", tmp_path / "away" / "deep" / "onnx")
    told = refuses("validate", "--ckpt_path", folder)
    assert "--data.dataset" in told
    status, out, err = vitcls("validate", "--ckpt_path", folder, "--data.validation_dir", colours / "test")
    assert status == 0, err
    assert "21 images" in out


def test_a_reading_of_the_test_data_by_an_export_counts_for_its_run(trained, vitcls):
    run = trained()
    assert vitcls("export", run)[0] == 0
    assert vitcls("test", "--ckpt_path", run / "exported" / "onnx")[0] == 0
    counted = json.loads((run / "metrics.json").read_text())["test"]
    assert list(counted) == ["reads_of"]  # its figures are not the run's
    status, _, err = vitcls("test", "--ckpt_path", run)
    assert status == 0, err
    assert json.loads((run / "metrics.json").read_text())["test"]["reads"] == 2
    assert vitcls("test", "--ckpt_path", run / "exported" / "onnx")[0] == 0
    assert json.loads((run / "metrics.json").read_text())["test"]["reads"] == 3


# -- what others read ---------------------------------------------------------------------------


def test_the_card_tells_what_was_measured_and_nothing_of_this_machine(trained, vitcls, colours, tmp_path):
    run = trained()
    assert vitcls("test", "--ckpt_path", run, "--report=true", "--data.num_workers=0")[0] == 0
    assert vitcls("export", run, "--to", "huggingface")[0] == 0
    card = (run / "exported" / "huggingface" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    test = json.loads((run / "report" / "metrics.json").read_text())["test"]
    said = yaml.safe_load(metadata)
    assert said["library_name"] == "transformers"
    assert said["model-index"][0]["results"][0]["metrics"][0] == {"type": "accuracy", "value": test["accuracy"]}
    assert f"| accuracy | {test['accuracy']:.4f} |" in text
    assert "Of 21 test images" in text
    assert "Licence of the data: not known" in text
    for label in CLASSES:
        assert f'- "{label}"' in text
    exported = run / "exported" / "huggingface"
    for file in (f for f in exported.rglob("*") if f.suffix in (".json", ".md")):
        assert str(tmp_path) not in file.read_text()
        assert str(colours) not in file.read_text()


def test_the_card_of_other_weights_has_no_figures_of_the_best(trained, vitcls):
    run = trained()
    assert vitcls("test", "--ckpt_path", run, "--report=true", "--data.num_workers=0")[0] == 0
    content = torch.load(run / "last.ckpt", weights_only=True)
    content["global_step"] += 1
    torch.save(content, run / "last.ckpt")
    assert vitcls("export", run / "last.ckpt", "--to", "huggingface")[0] == 0
    card = (run / "exported" / "huggingface" / "README.md").read_text()
    assert "None were kept with the run" in card
    assert "model-index" not in card


@pytest.mark.parametrize("name", GRAPHS)
def test_no_exported_graph_names_places_of_this_machine(run, name):
    folder = run / "exported" / name
    for file in folder.iterdir():
        for place in (str(Path(torch.__file__).parent.parent), str(Path(exported.__file__).parent), str(run)):
            assert place.encode() not in contents(file), file


def contents(file: Path) -> bytes:
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("name", GRAPHS)
def test_the_code_of_the_card_runs(run, name, monkeypatch, tmp_path):
    folder = run / "exported" / name
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    zeros = torch.zeros(2, 3, 32, 32)
    known = {"pixel_values": zeros if name == "torch" else zeros.numpy()}
    exec(code.replace("THIS_FOLDER", str(folder)), known)
    if "logits" in known:
        assert known["logits"].shape == (2, 3)
    assert ("--model.trust_exported true" in card) == (name == "torch")


def test_a_run_without_figures_has_a_card_that_says_so(run):
    assert "None were kept with the run" in (run / "exported" / "onnx" / "README.md").read_text()


def test_what_would_be_sent_is_listed_and_nothing_is_sent(run, vitcls):
    status, out, err = vitcls("export", run, "--to", "huggingface", "--push_to_hub=me/colours", "--dry_run=true")
    assert status == 0, err
    for name in ("README.md", "config.json", "manifest.json", "model.safetensors", "preprocessor_config.json"):
        assert f"would send {name} (" in out
    assert "5 files to me/colours; nothing was sent" in out


def test_what_cannot_be_sent_is_refused_and_the_export_kept(trained, refuses, monkeypatch):
    run = trained()
    assert "--push_to_hub 'a b' is no name" in refuses("export", run, "--push_to_hub", "a b")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "`hf auth login`" in refuses("export", run, "--push_to_hub", "me/colours")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    told = refuses("export", run, "--push_to_hub", "me/colours")
    assert "could not be sent to the Hub" in told
    assert (run / "exported" / "onnx" / MANIFEST).is_file()
    assert "--dry_run says" in refuses("export", run, "--dry_run=true")


def test_an_adapter_of_a_local_base_is_not_sent(run, refuses):
    told = refuses("export", run, "--to", "adapter", "--push_to_hub", "me/colours", "--dry_run=true")
    assert "is on this machine alone; send whole weights" in told


SENDING = """
from pathlib import Path
from vitcls.errors import UserError
from vitcls.export.hub import push
try:
    push(Path("."), "me/colours", True)
except UserError as error:
    print("told:", error)
"""


def test_a_hub_that_cannot_be_reached_is_told():
    away = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_of_nobody"}
    done = subprocess.run([sys.executable, "-c", SENDING], capture_output=True, text=True, env=os.environ | away)
    assert "told: 'me/colours' could not be sent to the Hub (" in done.stdout, done.stderr
