"""What stands in the files of predict."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageClassification

from tests.conftest import CLASSES
from tests.test_predict import rows_of
from vitcls.data.preprocess import spec_of_checkpoint
from vitcls.data.rows import FileImages
from vitcls.predictions.formats import FORMATS
from vitcls.predictions.rows import Row, Shape

EVERYTHING = ("--scores=all", "--embeddings=true", "--top_k=2")


@pytest.fixture(scope="module")
def photos(colours, tmp_path_factory):
    """Five images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("red", "green"):
        for number in range(2):
            (folder / f"{name} {number}.jpg").write_bytes((colours / "test" / name / f"00{number}.jpg").read_bytes())
    (folder / "m.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def predict(vitcls, trained_run, photos, tmp_path):
    """Predict the photos into a file: its path, and what was said."""

    def run(*words: object, output: str = "out.csv", images=photos):
        place = ("--data.predict", images, "--output", tmp_path / output, "--data.num_workers=0")
        place = (*place, "--model.temperature=1")  # as plain transformers
        status, out, err = vitcls("predict", "--ckpt_path", trained_run, *place, *words)
        assert status == 0, err
        return tmp_path / output, out

    return run


@pytest.fixture
def truth(trained_run, photos):
    """(4, 3) probabilities and (4, 32) embeddings, by plain transformers, of what can be read."""
    network = AutoModelForImageClassification.from_pretrained(trained_run / "model").eval()
    spec = spec_of_checkpoint(str(trained_run / "model"))
    images = FileImages(sorted(file for file in photos.iterdir() if file.name != "m.jpg"))
    pixels = [torch.from_numpy(images.pixels(i)).permute(2, 0, 1) for i in range(len(images))]
    batch = spec.normalise(torch.stack([spec.eval_transform(image) for image in pixels]))
    with torch.no_grad():
        hidden = network.vit(pixel_values=batch).last_hidden_state[:, 0]
        return network(pixel_values=batch).logits.softmax(-1).numpy(), hidden.numpy()


def test_a_csv_has_all_scores_and_embeddings_when_asked(predict, truth):
    file, _ = predict(*EVERYTHING)
    rows = rows_of(file)
    scores, features = [f"score:{name}" for name in CLASSES], [f"embedding_{i}" for i in range(32)]
    assert list(rows[0]) == ["id", "file", "label", "score", "label_2", "score_2", *scores, *features, "error"]
    good = [row for row in rows if not row["error"]]
    np.testing.assert_allclose([[float(row[name]) for name in scores] for row in good], truth[0], atol=2e-6)
    np.testing.assert_allclose([[float(row[name]) for name in features] for row in good], truth[1], atol=1e-4)
    (bad,) = (row for row in rows if row["error"])
    assert {value for name, value in bad.items() if name not in ("id", "file", "error")} == {""}


def test_json_lines_say_the_same(predict, truth):
    file, _ = predict(*EVERYTHING, output="out.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    good = [row for row in rows if row["error"] is None]
    np.testing.assert_allclose([[row["scores"][name] for name in CLASSES] for row in good], truth[0], atol=2e-6)
    np.testing.assert_allclose([row["embedding"] for row in good], truth[1], atol=1e-4)
    for row in good:
        assert list(row) == ["id", "file", "label", "score", "top", "scores", "embedding", "error"]
        assert [entry["label"] for entry in row["top"]] == sorted(CLASSES, key=lambda n: -row["scores"][n])[:2]
        assert (row["top"][0]["label"], row["top"][0]["score"]) == (row["label"], row["score"])
    (bad,) = (row for row in rows if row["error"])
    assert bad["label"] is bad["score"] is None


def test_parquet_says_the_same_with_types(predict, truth):
    file, _ = predict(*EVERYTHING, output="out.parquet")
    table = pq.read_table(file)
    assert json.loads(table.schema.metadata[b"labels"]) == list(CLASSES)
    rows = table.to_pylist()
    assert list(rows[0]) == ["id", "file", "label", "score", "label_2", "score_2", "scores", "embedding", "error"]
    good = [row for row in rows if row["error"] is None]
    np.testing.assert_allclose([row["scores"] for row in good], truth[0], atol=1e-6)
    np.testing.assert_allclose([row["embedding"] for row in good], truth[1], atol=1e-4)
    assert [row["label"] for row in good] == [CLASSES[i] for i in truth[0].argmax(1)]
    (bad,) = (row for row in rows if row["error"])
    assert {value for name, value in bad.items() if name not in ("id", "file", "error")} == {None}


def test_the_embedding_of_several_views_is_their_mean(predict, truth):
    file, _ = predict("--embeddings=true", "--data.tta=flip")
    found = [[float(row[f"embedding_{i}"]) for i in range(32)] for row in rows_of(file) if not row["error"]]
    assert np.abs(np.array(found) - truth[1]).max() > 1e-3  # of one view it would be the truth


def test_below_a_score_the_label_is_unknown(predict):
    plain = rows_of(predict()[0])
    scores = sorted(float(row["score"]) for row in plain if not row["error"])
    file, out = predict("--abstain", (scores[1] + scores[2]) / 2)
    rows = rows_of(file)
    assert [row["label"] == "unknown" for row in rows] == [float(row["score"] or 1) <= scores[1] for row in rows]
    assert [row["score"] for row in rows] == [row["score"] for row in plain]
    assert "2 are below --abstain" in out
    for row, before in zip(rows, plain, strict=True):
        assert row["label"] in ("unknown", before["label"])


def test_json_lines_still_name_the_class_below_the_score(predict):
    file, _ = predict("--abstain=1", output="out.jsonl")
    row = json.loads(file.read_text().splitlines()[0])
    assert row["label"] == "unknown"
    assert row["top"][0]["label"] in CLASSES


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--top_k=0"], "--top_k is 0; it must be at least 1."),
        (["--top_k=4"], "--top_k is 4; it must be at most 3, the model's number of classes."),
        (["--abstain=60"], "--abstain is 60.0; it must be in 0..1."),
        (["--abstain=.nan"], "--abstain is nan; it must be in 0..1."),
        (["--scores=some"], "--scores"),
        (["--output=out.xlsx"], "--output 'out.xlsx' must end in .csv, .jsonl, .parquet."),
    ],
)
def test_mistakes_are_sentences(refuses, trained_run, photos, words, part):
    assert part in refuses("predict", "--ckpt_path", trained_run, "--data.predict", photos, *words)


@pytest.mark.parametrize("word", ["--scores=all", "--top_k=2", "--embeddings=true", "--abstain=.5", "--sort_into=x"])
def test_other_verbs_refuse_the_options_of_predict(refuses, trained_run, word):
    told = refuses("validate", "--ckpt_path", trained_run, word)
    assert f"{word.partition('=')[0]} belongs to predict; validate writes no predictions." in told


def test_a_class_called_unknown_is_not_confused(refuses, trained_run, photos, tmp_path):
    words = ("--model.labels=[a, b, unknown]", "--abstain=0.5", f"--output={tmp_path}/o.csv")
    told = refuses("predict", "--ckpt_path", trained_run, "--data.predict", photos, *words)
    assert "the model has a class of that name" in told
    assert not list(tmp_path.iterdir())


def test_a_network_with_two_heads_has_no_embedding(refuses, photos, tmp_path):
    words = ("--model.checkpoint", tmp_path / "two", "--data.predict", photos, f"--output={tmp_path}/o.csv")
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = DeiTConfig(image_size=32, patch_size=16, **sizes, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "two")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "two")
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "two")
    if type(network) is not DeiTForImageClassificationWithTeacher:
        pytest.skip("transformers loads this checkpoint with one head")
    assert "2 heads" in refuses("predict", *words, "--embeddings=true")


ODD = Row(0, os.fsdecode(b"a\xff, b.jpg"), "x|y", [("x|y", 0.75), ("z", 0.25)], ["x|y", "z"], None, None, "")


@pytest.mark.parametrize("suffix", FORMATS)
def test_odd_names_survive(tmp_path, suffix):
    """A path that is no UTF-8, and the separator of a column in a name."""
    file = FORMATS[suffix](tmp_path / "out", Shape(["x|y", "z"], "multilabel", 2))
    file.write([ODD])
    file.close()
    if suffix == ".csv":
        with (tmp_path / "out").open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
            (row,) = csv.DictReader(lines)
        assert (row["file"], row["labels"], row["label"]) == (ODD.file, "x\\|y|z", "x|y")
    elif suffix == ".jsonl":
        row = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
        assert (row["file"], row["labels"], row["label"]) == (ODD.file, ["x|y", "z"], "x|y")
    else:
        (row,) = pq.read_table(tmp_path / "out").to_pylist()
        assert (row["file"], row["labels"], row["label"]) == ("a\\xff, b.jpg", ["x|y", "z"], "x|y")
