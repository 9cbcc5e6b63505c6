"""A student and its teacher: the formulas, what the teacher sees, and where it leaves no trace."""

import csv
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.conftest import TINY, draw_split, multilabel_options
from tests.test_adapters import FAMILIES
from vitcls.data.preprocess import ImageSpec
from vitcls.models.classifier import ViTClassifier
from vitcls.models.distillation import Distill, Distilling, feature_loss, soft_loss
from vitcls.models.features import feature_width, inputs_of_head
from vitcls.models.network import from_architecture
from vitcls.models.teacher import load_teacher, seen_by

OVERLAYS = Path(__file__).parents[1] / "configs" / "overlays"
PLAIN = ["--data.augment=none", "--model.schedule=constant", "--model.lr=0.003"]
LOGITS, TARGETS = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
SPECS = [
    ImageSpec(32, 32, "squash", "bilinear", mean, std)
    for mean, std in [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
]


def save_network(folder, labels=("blue", "green", "red"), size=32, several=False, **fields):
    """A teacher as a transformers folder, with a mean and std of its own."""
    torch.manual_seed(5)
    config = ViTConfig(**{**TINY, "hidden_size": 48, "image_size": size, **fields}, num_labels=len(labels))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "multi_label_classification" if several else None
    network = ViTForImageClassification(config)
    nn.init.normal_(network.classifier.weight)
    network.save_pretrained(folder)
    square = {"height": size, "width": size}
    ViTImageProcessor(size=square, image_mean=SPECS[1].mean, image_std=SPECS[1].std).save_pretrained(folder)
    return folder


def load(file):
    return torch.load(file, weights_only=True)


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


# -- the formulas ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_hintons(temperature):
    shares = (TARGETS / temperature).softmax(-1)
    entropy = -(shares * shares.log()).sum(-1).mean()
    expected = temperature**2 * (F.cross_entropy(LOGITS / temperature, shares) - entropy)
    torch.testing.assert_close(soft_loss("multiclass", LOGITS, TARGETS, temperature), expected)


def test_soft_targets_of_several_labels_are_a_divergence_of_each():
    shares = (TARGETS / 3).sigmoid()
    entropy = F.binary_cross_entropy(shares, shares)
    expected = 9 * (F.binary_cross_entropy_with_logits(LOGITS / 3, shares) - entropy)
    torch.testing.assert_close(soft_loss("multilabel", LOGITS, TARGETS, 3.0), expected)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_who_answers_as_the_teacher_has_learned_it_all(task):
    sure = torch.tensor([[100.0, -100.0, 3.0], [0.0, 50.0, -200.0]], requires_grad=True)
    loss = soft_loss(task, sure, sure.detach(), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert sure.grad.abs().max() < 1e-6


def test_features_are_compared_by_their_direction():
    assert feature_loss(LOGITS, 7 * LOGITS).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(LOGITS, -LOGITS).item() == pytest.approx(2, abs=1e-6)


# -- what the teacher sees --------------------------------------------------------------------


def test_the_teacher_sees_the_same_pixels_as_it_was_trained_on():
    ours, theirs = SPECS
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(
        seen_by(theirs, ours.normalise(pixels), ours), theirs.normalise(pixels), rtol=0, atol=1e-5
    )
    assert seen_by(ours, ours.normalise(pixels), ours).equal(ours.normalise(pixels))
    assert seen_by(theirs.sized(48), ours.normalise(pixels), ours).shape == (2, 3, 48, 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_head_takes(family):
    network = from_architecture({"model_type": family, **FAMILIES[family]}, ["a", "b"]).eval()
    with inputs_of_head(network) as features, torch.no_grad():
        logits = network(pixel_values=torch.randn(2, 3, 32, 32)).logits
    assert features[0].shape == (2, feature_width(network))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features[0]), logits)
    assert not any(module._forward_pre_hooks for module in network.modules())


# -- through the command line -------------------------------------------------------------------


def test_a_student_comes_to_answer_as_its_teacher(vitcls, fit_words, tmp_path, colours):
    """The teacher is random: no label tells what it says."""
    teacher = save_network(tmp_path / "teacher", labels=("red", "blue", "green"), size=48)
    words = [*fit_words, *PLAIN, f"--model.distill.teacher={teacher}", "--model.distill.weight=1"]
    status, _, err = vitcls(*words, "--trainer.max_epochs=12", "--data.mixup=0.4")
    assert status == 0, err
    run = tmp_path / "runs" / "run"
    soft = column(run, "train/soft_loss")
    assert soft[-1] < soft[0] / 4
    loss = column(run, "train/loss")
    assert loss == pytest.approx(soft, abs=1e-6)  # weight 1: the labels count nothing
    student = AutoModelForImageClassification.from_pretrained(run / "model").eval()
    theirs = AutoModelForImageClassification.from_pretrained(teacher).eval()
    pixels = SPECS[1].normalise(torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8))
    with torch.inference_mode():
        asked = theirs(pixel_values=pixels).logits.softmax(-1)
        model = ViTClassifier.load_from_checkpoint(run / "last.ckpt", weights_only=True).eval()
        small = seen_by(model.image_spec, pixels, SPECS[1].sized(48))
        answered = model(small).softmax(-1)[:, [2, 0, 1]]  # red, blue, green
    assert student.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert (answered - asked).abs().mean() < (answered.mean(1, keepdim=True) - asked).abs().mean()


@pytest.mark.parametrize("kind", ["full", "lora", "ema"])
def test_the_teacher_leaves_no_trace_and_is_needed_by_training_only(
    vitcls, refuses, fit_words, tmp_path, colours, kind
):
    kinds = {"full": [], "lora": ["--model.adapter.r=2", "--model.adapter.dropout=0"]}
    kinds["ema"] = [f"--config={OVERLAYS / 'ema.yaml'}"]
    teacher = save_network(tmp_path / "teacher")
    plain, distill = ([*fit_words, *PLAIN, *kinds[kind], "--trainer.max_epochs=1"] for _ in range(2))
    distill += [f"--model.distill.teacher={teacher}", "--model.distill.features=1"]
    assert vitcls(*plain, "--run_name=plain")[0] == 0
    status, _, err = vitcls(*distill)
    assert status == 0, err
    run = tmp_path / "runs" / "run"
    kept, without = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("run", "plain"))
    more = {"_distilling.projection.weight", "_distilling.projection.bias"}
    assert kept["state_dict"].keys() - without["state_dict"].keys() == more
    states = [len(content["optimizer_states"][0]["state"]) for content in (kept, without)]
    assert states[0] == states[1] + len(more)
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    folders = [load_file(tmp_path / "runs" / name / "model" / weights).keys() for name in ("run", "plain")]
    assert folders[0] == folders[1]
    assert kept["hyper_parameters"]["distill"] == {
        "teacher": str(teacher),
        "revision": None,
        "temperature": 2.0,
        "weight": 0.5,
        "features": 1.0,
    }
    teacher.rename(tmp_path / "away")
    for verb in ("validate", "test"):
        assert vitcls(verb, "--ckpt_path", run, "--trainer.enable_progress_bar=false")[0] == 0
    words = ["predict", "--ckpt_path", run, "--data.predict", colours / "test", "--output", tmp_path / "p.csv"]
    assert vitcls(*words, "--trainer.enable_progress_bar=false")[0] == 0
    told = refuses("fit", "--ckpt_path", run, "--trainer.max_epochs=2")
    assert "(--model.distill.teacher) cannot be loaded, and training, also a resumed one, needs it" in told
    (tmp_path / "away").rename(teacher)
    assert vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=2")[0] == 0


def test_a_resume_goes_on_bit_for_bit(vitcls, fit_words, tmp_path):
    teacher = save_network(tmp_path / "teacher")
    words = [*fit_words, *PLAIN, f"--model.distill.teacher={teacher}", "--model.distill.features=0.5"]
    words += ["--model.warmup_steps=2"]
    assert vitcls(*words, "--run_name=whole", "--trainer.max_epochs=3")[0] == 0
    assert vitcls(*words, "--run_name=parts", "--trainer.max_epochs=1")[0] == 0
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.max_epochs=3")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    torch.testing.assert_close(whole["state_dict"], parts["state_dict"], rtol=0, atol=0)


def test_a_teacher_of_several_labels(vitcls, tiny_vit, scenes, tmp_path):
    teacher = save_network(tmp_path / "teacher", several=True)
    words = multilabel_options(tiny_vit, scenes, tmp_path / "runs", epochs=2)
    status, _, err = vitcls(*words, f"--model.distill.teacher={teacher}")
    assert status == 0, err
    soft = column(tmp_path / "runs" / "run", "train/soft_loss")
    assert soft[1] < soft[0]


def test_features_alone_need_no_classes(vitcls, fit_words, tmp_path, tiny_vit):
    words = [*fit_words, *PLAIN, f"--model.distill.teacher={tiny_vit}"]
    words += ["--model.distill.weight=0", "--model.distill.features=1", "--trainer.precision=bf16-mixed"]
    status, _, err = vitcls(*words)
    assert status == 0, err
    found = column(tmp_path / "runs" / "run", "train/feature_loss")
    assert found[1] < found[0]
    assert not column(tmp_path / "runs" / "run", "train/soft_loss")


class NoteTeacher(Callback):
    """Writes of what kind the teacher's weights are while it teaches."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        network = pl_module._distilling.teacher._network
        weights = next(network.parameters())
        self.file.write_text(f"{weights.dtype} {weights.requires_grad} {network.training}")


def test_the_overlay_trains(vitcls, fit_words, tmp_path):
    words = ["--config", OVERLAYS / "distill.yaml", f"--model.distill.teacher={save_network(tmp_path / 'teacher')}"]
    status, _, err = vitcls(*fit_words, *words, "--trainer.max_epochs=1")
    assert status == 0, err
    assert load(tmp_path / "runs" / "run" / "last.ckpt")["hyper_parameters"]["distill"]["temperature"] == 2.0


def test_features_are_asked_of_a_run_with_other_classes(vitcls, fit_words, tmp_path, colours):
    draw_split(tmp_path / "two" / "train", 10, seed=3, classes=("blue", "green"))
    words = ["--run_name=two", f"--data.dataset={tmp_path / 'two'}", "--trainer.max_epochs=1"]
    assert vitcls(*fit_words, *words)[0] == 0
    words = [f"--model.distill.teacher={tmp_path / 'runs' / 'two'}", "--model.distill.weight=0"]
    status, _, err = vitcls(*fit_words, *words, "--model.distill.features=1", "--trainer.max_epochs=1")
    assert status == 0, err


LOW_BASE = ["--model.adapter.r=2", "--model.base_precision=bfloat16"]


@pytest.mark.parametrize(
    ("words", "dtype"), [(["--trainer.precision=bf16-true"], "bfloat16"), (LOW_BASE, "float32")], ids=["true", "base"]
)
def test_the_teacher_is_frozen_and_has_the_precision_of_the_student(vitcls, fit_words, tmp_path, words, dtype):
    note = {"class_path": "tests.test_distillation.NoteTeacher", "init_args": {"file": str(tmp_path / "kind.txt")}}
    (tmp_path / "note.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [note]}}))
    words = [*fit_words, *words, f"--model.distill.teacher={save_network(tmp_path / 'teacher')}", "--config"]
    words += [tmp_path / "note.yaml"]
    status, _, err = vitcls(*words, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
    assert status == 0, err
    assert (tmp_path / "kind.txt").read_text() == f"torch.{dtype} False False"


def test_a_copy_of_the_student_has_the_same_teacher(tmp_path):
    folder = str(save_network(tmp_path / "teacher"))
    teacher = load_teacher(folder, None, ViTClassifier, ["red", "green", "blue"], "multiclass")
    student = Distilling(Distill("t", features=1.0), "multiclass", teacher, SPECS[0], 32)
    copied = deepcopy(student)
    assert copied.teacher is student.teacher
    assert copied.projection is not student.projection
    assert {name for name, _ in student.named_parameters()} == {"projection.weight", "projection.bias"}
    logits, features = teacher.answer(torch.randn(2, 3, 32, 32), SPECS[0])
    assert (logits.shape, features.shape) == ((2, 3), (2, 48))
    assert not logits.requires_grad


def test_what_is_kept_is_plain_values():
    """Checkpoints are read without unpickling."""
    model = ViTClassifier("x", distill=Distill("t", weight=0.5))
    assert model.hparams["distill"]["weight"] == 0.5
    assert ViTClassifier("x", distill=dict(model.hparams["distill"]))._distill == Distill("t", weight=0.5)


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("blue", "green", "rot"), "it lacks red and has besides rot."),
        (("blue", "green"), "it lacks red."),
        (("blue", "green", "red", "pink"), "it has besides pink."),
        (("LABEL_0", "LABEL_1"), "it has no class names"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(refuses, fit_words, tmp_path, labels, told):
    teacher = save_network(tmp_path / "teacher", labels)
    assert told in refuses(*fit_words, f"--model.distill.teacher={teacher}")
    assert not (tmp_path / "runs" / "run").exists()


def test_a_teacher_of_another_task_is_refused(refuses, fit_words, tmp_path):
    teacher = save_network(tmp_path / "teacher", several=True)
    told = refuses(*fit_words, f"--model.distill.teacher={teacher}")
    assert "was trained for the task multilabel, and this is multiclass" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.distill.temperature=0"], "--model.distill.temperature is 0.0; it must be above 0"),
        (["--model.distill.weight=1.5"], "--model.distill.weight is 1.5; it must be between 0 and 1"),
        (["--model.distill.features=-1"], "--model.distill.features is -1.0; it must be at least 0"),
        (["--model.distill.weight=0"], "leave nothing to learn from the teacher"),
        (
            ["--model.distill.temprature=3"],
            "has no option 'temprature' (did you mean 'temperature'?)",
        ),
        ([], "The checkpoint folder './nowhere' does not exist"),
    ],
)
def test_what_cannot_be_is_a_sentence(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, "--model.distill.teacher=./nowhere", *words)


def test_a_teacher_must_be_named(refuses, fit_words, tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text(yaml.safe_dump({"model": {"distill": {"weight": 0.5}}}))
    assert "teacher" in refuses(*fit_words, "--config", file)


def test_a_damaged_checkpoint_is_no_teacher(refuses, fit_words, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"PK nothing")
    assert "cannot be read" in refuses(*fit_words, f"--model.distill.teacher={tmp_path / 'a.ckpt'}")
