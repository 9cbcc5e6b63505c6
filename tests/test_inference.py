import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import ExifTags, Image
from transformers import ViTForImageClassification

from tests.test_package import python
from vitcls.data.decode import decode
from vitcls.data.preprocess import ImageSpec
from vitcls.decisions import best_of, probabilities_of
from vitcls.errors import BadImageError, UserError
from vitcls.inference import Predictor
from vitcls.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from vitcls.models import tasks

LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
SPEC = ImageSpec(32, 37, "crop", "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Manifest(
    format="onnx",
    file="model.onnx",
    task="multiclass",
    labels=LABELS,
    thresholds={},
    image=SPEC.record(),
    takes="float32",
    temperature=1.0,
    made_of={},
    run=None,
    vitcls="0",
    versions={},
)
HEAVY = {"torch", "transformers", "lightning", "datasets", "pyarrow", "jsonargparse", "scipy", "pandas", "onnxruntime"}


class Logits(torch.nn.Module):
    """The network as it is exported: logits alone, and on request the normalisation inside."""

    def __init__(self, network: ViTForImageClassification, normalises: bool) -> None:
        super().__init__()
        self.network = network
        self.normalises = normalises
        for name, values in (("mean", SPEC.mean), ("std", SPEC.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None] * 255)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        values = (pixel_values.float() - self.mean) / self.std if self.normalises else pixel_values
        return self.network(values).logits


@torch.no_grad()  # with gradients it starts autograd's threads, after which no test of this process can fork a training
def exported(folder: Path, network: torch.nn.Module, example: torch.Tensor) -> None:
    """Write model.onnx, for batches of any size."""
    torch.onnx.export(
        network.eval(),
        (example,),
        folder / PLAIN.file,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )


@pytest.fixture(scope="session")
def network(tiny_vit) -> ViTForImageClassification:
    """The tiny ViT, with a head that prefers some classes."""
    network = ViTForImageClassification.from_pretrained(tiny_vit).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(network.classifier.weight)
    return network


@pytest.fixture(scope="session")
def folders(network, tmp_path_factory) -> dict[str, Path]:
    """What the network takes -> an exported folder."""
    made = {takes: tmp_path_factory.mktemp(takes) for takes in ("float32", "uint8")}
    exported(made["float32"], Logits(network, normalises=False), torch.zeros(2, 3, 32, 32))
    exported(made["uint8"], Logits(network, normalises=True), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    for takes, folder in made.items():
        write_manifest(folder, replace(PLAIN, takes=takes))
    return made


@pytest.fixture
def folder_of(folders, tmp_path) -> Callable[..., Path]:
    """A folder of its own, whose manifest says something else."""

    def made(**said: object) -> Path:
        folder = Path(shutil.copytree(folders["float32"], tmp_path / "exported"))
        write_manifest(folder, replace(PLAIN, **said))
        return folder

    return made


@pytest.fixture(scope="session")
def predictor(folders) -> Predictor:
    return Predictor(folders["float32"], threads=1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    """JPEGs of several shapes, one of them lying on its side."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for number, (width, height) in enumerate([(60, 45), (33, 90), (32, 32), (150, 120), (20, 31)]):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if number == 1 else 1
        files.append(folder / f"{number}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], exif=exif)
    return files


def logits_of(network: ViTForImageClassification, files: list[Path]) -> torch.Tensor:
    """As in training: decoded, transformed and normalised by the ImageSpec."""
    pixels = [torch.from_numpy(decode(file.read_bytes())).permute(2, 0, 1) for file in files]
    with torch.inference_mode():
        return network(SPEC.normalise(torch.stack([SPEC.eval_transform(image) for image in pixels]))).logits


@pytest.mark.parametrize("takes", ["float32", "uint8"])
def test_answers_are_those_of_the_trained_network(takes, folders, network, photos):
    answers = Predictor(folders[takes])(photos, top_k=7)
    expected = logits_of(network, photos).softmax(-1)
    assert len({answer.label for answer in answers}) > 1
    for answer, row in zip(answers, expected, strict=True):
        assert answer.label == LABELS[row.argmax()]
        assert answer.score == pytest.approx(float(row.max()), abs=1e-5)
        assert dict(answer.top) == pytest.approx(dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5)
        assert answer.top == sorted(answer.top, key=lambda named: -named[1])
        assert answer.labels is None


def test_labels_of_a_multilabel_image_are_those_that_reach_their_own_threshold(folder_of, network, photos):
    expected = logits_of(network, photos).sigmoid()
    thresholds = {"ant": 0.01, "bee": 0.99}
    predictor = Predictor(folder_of(task="multilabel", thresholds=thresholds))
    assert predictor.thresholds.tolist() == [0.01, 0.99, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert predictor.thresholds.dtype == np.float64
    for answer, row in zip(predictor(photos), expected.tolist(), strict=True):
        assert answer.labels == [name for name, p in zip(LABELS, row, strict=True) if p >= thresholds.get(name, 0.5)]
        assert answer.score == pytest.approx(max(row), abs=1e-5)


def forms_of(file: Path) -> dict[str, object]:
    return {
        "path": file,
        "string": str(file),
        "bytes": file.read_bytes(),
        "bytearray": bytearray(file.read_bytes()),
        "opened file": BytesIO(file.read_bytes()),
        "image of Pillow's": Image.open(file),
        "array": decode(file.read_bytes()),
    }


def test_every_form_of_an_image_is_answered_alike_alone_and_among_others(predictor, photos):
    lies_on_its_side = photos[1]
    (expected,) = predictor([lies_on_its_side])
    for form, image in forms_of(lies_on_its_side).items():
        assert predictor(image) == [expected], form
    assert predictor(list(forms_of(lies_on_its_side).values())) == [expected] * 7
    assert predictor(np.stack([decode(lies_on_its_side.read_bytes())] * 2)) == [expected] * 2


def test_no_images_have_no_answers(predictor):
    assert predictor([]) == []


def test_the_size_of_the_batches_does_not_change_the_answers(folders, photos):
    together, alone = (Predictor(folders["float32"], batch_size=size)(photos) for size in (3, 1))
    assert [answer.label for answer in together] == [answer.label for answer in alone]
    assert [answer.score for answer in together] == pytest.approx([answer.score for answer in alone], abs=1e-6)


def test_as_many_best_classes_as_asked_for_and_no_more_than_there_are(predictor, photos):
    assert [len(predictor(photos[0], top_k=count)[0].top) for count in (1, 3, 7, 99)] == [1, 3, 7, 7]


def test_below_abstain_the_label_is_unknown_and_the_best_classes_are_named_as_ever(predictor, photos):
    answers = predictor(photos)
    limit = sorted(answer.score for answer in answers)[2]
    for plain, answer in zip(answers, predictor(photos, abstain=limit), strict=True):
        assert answer.label == ("unknown" if plain.score < limit else plain.label)
        assert answer[1:] == plain[1:]


def test_prepared_images_have_the_probabilities_of_their_answers(predictor, photos):
    batch = np.stack([predictor.prepare(decode(file.read_bytes())) for file in photos])
    probabilities = predictor.probabilities(batch)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (5, 7)
    assert probabilities.sum(-1) == pytest.approx(1, abs=1e-6)
    assert probabilities.max(-1).tolist() == [answer.score for answer in predictor(photos)]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_probabilities_are_torchs_also_of_logits_that_would_overflow(task):
    logits = np.random.default_rng(0).normal(0, 30, (200, 9)).astype(np.float32)
    logits[:3] = [[1e4], [-1e4], [0]]
    logits[3, 4] = 1e4
    ours, theirs = probabilities_of(task, logits), tasks.probabilities_of(task, torch.from_numpy(logits)).numpy()
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-6


def test_of_classes_equally_good_the_first_comes_first():
    assert best_of(np.array([[0.2, 0.4, 0.4]], np.float32), 2).tolist() == [[1, 2]]


def test_a_bad_image_is_named_with_its_cause(predictor, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[3].read_bytes()[:-300])
    half = Image.open(BytesIO(broken.read_bytes()))
    bad = {
        f"{broken}: .*truncated": broken,
        f"{tmp_path / 'none.jpg'}: No such file": str(tmp_path / "none.jpg"),
        f"{tmp_path}: Is a directory": tmp_path,
        r"image 2 of 2: the file is empty \(0 bytes\)": b"",
        r"image 2 of 2: the content is not an image": BytesIO(b"text"),
        r"image 2 of 2: .*truncated": half,
        r"image 2 of 2: an array must be \(H, W, 3\) uint8, not \(4, 4, 3\) float64": np.zeros((4, 4, 3)),
        r"image 2 of 2: an array must be \(H, W, 3\) uint8, not \(3, 4, 4\) uint8": np.zeros((3, 4, 4), np.uint8),
        r"image 2 of 2: 4x0 pixels are no picture": np.zeros((0, 4, 3), np.uint8),
        r"image 2 of 2: 500x2 pixels are a line": np.zeros((2, 500, 3), np.uint8),
    }
    for sentence, image in bad.items():
        with pytest.raises(BadImageError, match=sentence):
            predictor([photos[0], image])


def test_what_is_no_image_is_refused(predictor):
    with pytest.raises(UserError, match=r"takes paths, bytes, .* not int"):
        predictor([7])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"abstain": 1.5}, r"abstain is 1.5; it must be in 0\.\.1"),
        ({"abstain": float("nan")}, r"abstain is nan; it must be in 0\.\.1"),
    ],
)
def test_an_argument_out_of_range_is_refused(said, sentence, predictor, photos):
    with pytest.raises(UserError, match=sentence):
        predictor(photos, **said)


@pytest.mark.parametrize("argument", ["threads", "batch_size"])
def test_a_predictor_of_no_threads_or_images_is_refused(argument, folders):
    with pytest.raises(UserError, match=f"{argument} is 0; it must be at least 1"):
        Predictor(folders["float32"], **{argument: 0})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"task": "multilabel"}, "abstain is for images of one class"),
        ({"labels": [*LABELS[:-1], "unknown"]}, "the network has a class of that name"),
    ],
)
def test_abstention_is_refused_where_it_has_no_meaning(said, sentence, folder_of, photos):
    with pytest.raises(UserError, match=sentence):
        Predictor(folder_of(**said))(photos, abstain=0.5)


@pytest.mark.parametrize(
    "batch", [np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 3, 31, 32), np.uint8), np.zeros((3, 32, 32), np.uint8)]
)
def test_a_batch_that_was_not_prepared_is_refused(batch, predictor):
    with pytest.raises(UserError, match=r"takes \(B, 3, 32, 32\) uint8, not .*`prepare` makes it"):
        predictor.probabilities(batch)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"format": "torchscript"}, "exported as 'torchscript'; a Predictor takes onnx, onnx-int8: .* --to onnx"),
        ({"file": "other.onnx"}, "names the network 'other.onnx', which is none of its files"),
        ({"file": "../exported/model.onnx"}, "which is none of its files"),
    ],
)
def test_a_folder_that_it_cannot_take_is_refused(said, sentence, folder_of):
    with pytest.raises(UserError, match=sentence):
        Predictor(folder_of(**said))


def test_int8_networks_are_taken_as_others(folder_of, photos):
    assert len(Predictor(folder_of(format="onnx-int8"))(photos)) == 5


def test_a_network_that_has_changed_since_its_export_is_refused(folder_of):
    folder = folder_of()
    (folder / PLAIN.file).write_bytes(b"something else")
    with pytest.raises(UserError, match="its SHA-256 differs"):
        Predictor(folder)


def test_a_file_that_is_no_network_is_refused_in_one_sentence(folder_of):
    folder = folder_of()
    (folder / PLAIN.file).write_bytes(b"something else")
    write_manifest(folder, PLAIN)
    with pytest.raises(UserError, match=r"cannot be loaded by onnxruntime \(.*\); export again\.$"):
        Predictor(folder)


@pytest.mark.parametrize("place", ["../secret.bin", "{absolute}", "link.bin"])
def test_weights_outside_the_folder_are_never_read(place, folder_of, tmp_path):
    folder = folder_of()
    secret = tmp_path / "secret.bin"
    model = onnx.load(folder / PLAIN.file)
    weights = next(w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.raw_data) > 128)
    secret.write_bytes(weights.raw_data)
    (folder / "link.bin").symlink_to(secret)
    onnx.external_data_helper.set_external_data(weights, place.format(absolute=secret))
    weights.ClearField("raw_data")
    (folder / PLAIN.file).write_bytes(model.SerializeToString())
    write_manifest(folder, PLAIN)
    with pytest.raises(UserError, match=r"cannot be loaded by onnxruntime .*External data path"):
        Predictor(folder)


def test_importing_it_imports_nothing_heavy():
    modules = json.loads(python("import sys, json, vitcls.inference; print(json.dumps(sorted(sys.modules)))"))
    assert "numpy" in modules
    assert not HEAVY & {name.split(".")[0] for name in modules}


WITHOUT = """
import json, sys
sys.modules.update(dict.fromkeys({absent}))
from vitcls.inference import Predictor
print(json.dumps(Predictor({folder!r}, threads=1)({files})))
"""


def test_onnxruntime_numpy_and_pillow_suffice_for_the_same_answers(folders, predictor, photos):
    absent = sorted((HEAVY - {"onnxruntime"}) | {"simplejpeg", "yaml", "matplotlib", "sklearn", "torchvision"})
    files = [str(file) for file in photos]
    out = python(WITHOUT.format(absent=absent, folder=str(folders["float32"]), files=files))
    assert json.loads(out) == json.loads(json.dumps(predictor(photos)))


def test_without_onnxruntime_one_sentence_says_how_to_have_it(folders):
    code = WITHOUT.format(absent=["onnxruntime"], folder=str(folders["float32"]), files=[])
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stderr.splitlines()[-1].endswith("An ONNX export needs onnxruntime: pip install 'vitcls[onnx]'.")


def test_it_says_what_it_knows(predictor, folders):
    assert predictor.labels == LABELS
    assert predictor.task == "multiclass"
    assert predictor.spec.record() == SPEC.record()
    assert read_manifest(folders["float32"]).files.keys() == {PLAIN.file}
    assert (folders["float32"] / MANIFEST).is_file()


def test_nothing_is_reported_to_the_makers_of_onnxruntime(folders, tmp_path):
    """Its telemetry leaves the id of a session among the temporary files."""
    code = f"from vitcls.inference import Predictor; Predictor({str(folders['float32'])!r})"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_takes_images_alone_is_given_them_so(folders, photos, tmp_path):
    """By onnxruntime's integers of ranges that are found for each batch; here by a network for one image."""
    folder = Path(shutil.copytree(folders["float32"], tmp_path / "alone"))
    model = onnx.load(folder / PLAIN.file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / PLAIN.file)
    write_manifest(folder, PLAIN)
    with pytest.raises(Exception, match="invalid dimensions"):
        Predictor(folder)(photos)
    write_manifest(folder, replace(PLAIN, alone=True))
    assert Predictor(folder)(photos) == [Predictor(folder)(photo)[0] for photo in photos]
