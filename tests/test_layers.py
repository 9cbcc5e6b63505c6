"""The first blocks of a pretrained network."""

import pytest
import torch
from transformers import ViTImageProcessor

from tests.test_adapters import FAMILIES
from vitcls import LoRA, ViTClassifier
from vitcls.errors import UserError
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder
from vitcls.models.network import from_architecture

LABELS = ["a", "b"]


@pytest.fixture
def saved(tmp_path):
    def save(family: str):
        torch.manual_seed(0)
        network = from_architecture({"model_type": family, **FAMILIES[family]}, LABELS)
        network.save_pretrained(tmp_path / "network")
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "network")
        return tmp_path / "network"

    return save


def configured(checkpoint, **arguments) -> ViTClassifier:
    model = ViTClassifier(str(checkpoint), labels=LABELS, **arguments)
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("adapter", [None, LoRA(r=2)])
@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2"])
def test_the_first_blocks_are_kept_with_their_weights(saved, family, adapter, tmp_path):
    checkpoint = saved(family)
    model = configured(checkpoint, layers=1, adapter=adapter)
    whole, part = (m.network.state_dict() for m in (configured(checkpoint), configured(checkpoint, layers=1)))
    assert part.keys() == {name for name in whole if "layers.1." not in name and "layer.1." not in name}
    assert all(torch.equal(value, whole[name]) for name, value in part.items())
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", torch.randn(2, 3, 32, 32)) <= TOLERANCE


def test_a_student_of_few_blocks_is_trained_and_tested(vitcls, fit_words, tmp_path):
    words = ["--model.layers=1", "--trainer.max_epochs=1"]
    assert vitcls(*fit_words, *words, "--run_name=teacher", "--model.layers=2")[0] == 0
    status, _, err = vitcls(*fit_words, *words, f"--model.distill.teacher={tmp_path / 'runs' / 'teacher'}")
    assert status == 0, err
    assert vitcls("test", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.enable_progress_bar=false")[0] == 0
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "run", "--trainer.max_epochs=2")[0] == 0


@pytest.mark.parametrize(
    ("family", "layers", "told"),
    [
        ("vit", 3, "--model.layers is 3, but the checkpoint has 2 blocks"),
        ("vit", 0, "--model.layers is 0; it must be at least 1"),
        ("swin", 1, "type 'swin' does not have"),
        ("convnext", 1, "type 'convnext' does not have"),
        ("resnet", 1, "type 'resnet' does not have"),
    ],
)
def test_blocks_that_there_are_not_are_refused(saved, family, layers, told):
    with pytest.raises(UserError, match=told):
        configured(saved(family), layers=layers)


def test_an_architecture_says_its_depth_itself():
    with pytest.raises(UserError, match="by its field num_hidden_layers"):
        ViTClassifier(architecture={"model_type": "vit"}, layers=2)
