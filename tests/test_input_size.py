"""Pretrained networks for images of another size."""

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForImageClassification, ViTImageProcessor

from tests.test_adapters import FAMILIES
from vitcls import ImageDataModule, LoRA, ViTClassifier
from vitcls.data.preprocess import ImageSpec
from vitcls.errors import UserError
from vitcls.models.folder import TOLERANCE, load_model_folder, reload_difference, write_model_folder
from vitcls.models.kept import frozen_digest
from vitcls.models.network import from_architecture

ARGUMENTS = {"all": {}, "head": {"train": "head"}, "lora": {"adapter": LoRA(r=2, targets=["query", "value"])}}
LABELS = ["blue", "green", "red"]


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a family for images of 32 pixels, with a head for LABELS."""

    def save(family: str):
        torch.manual_seed(0)
        fields = FAMILIES.get(family, FAMILIES["vit"])
        fields = fields | ({"use_relative_position_bias": True} if family == "beit" else {})
        network = from_architecture({"model_type": family, **fields}, LABELS)
        positions = getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None)
        if positions is not None:
            torch.nn.init.normal_(positions)  # as after a training: new ones are nearly zero
        network.save_pretrained(tmp_path / "network")
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "network")
        return tmp_path / "network"

    return save


def configured(checkpoint, **arguments) -> ViTClassifier:
    model = ViTClassifier(str(checkpoint), labels=LABELS, **arguments)
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_position_embeddings_are_interpolated(saved, family, size):
    checkpoint = saved(family)
    pixels = torch.randn(2, 3, size, size)
    words = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        theirs = AutoModelForImageClassification.from_pretrained(checkpoint).eval()(pixel_values=pixels, **words).logits
        ours = configured(checkpoint, image_size=size)(pixels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2", "swin", "convnext", "resnet"])
@pytest.mark.parametrize("how", ARGUMENTS)
def test_a_network_of_another_size_is_trained_kept_and_loaded(saved, family, how, tmp_path, colours):
    if how == "lora" and family in ("convnext", "resnet"):
        pytest.skip("they have no query and value")
    model = ViTClassifier(str(saved(family)), image_size=48, **ARGUMENTS[how])
    data = ImageDataModule(str(colours), batch_size=16, num_workers=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **quiet)
    trainer.fit(model, data)
    assert data.image_spec.size == 48
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ViTClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    pixels = torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels), rtol=0, atol=0)
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", pixels) <= TOLERANCE


def test_all_weights_of_another_size_need_no_option_to_be_loaded(saved, tmp_path):
    model = configured(saved("vit"), image_size=48)
    write_model_folder(model, tmp_path / "model")
    pixels = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(load_model_folder(tmp_path / "model")(pixel_values=pixels).logits, model(pixels))


def test_a_network_of_another_size_is_the_base_of_an_adapter(saved, tmp_path):
    write_model_folder(configured(saved("vit"), image_size=48), tmp_path / "larger")
    model = configured(tmp_path / "larger", **ARGUMENTS["lora"])
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", torch.randn(1, 3, 48, 48)) <= TOLERANCE


def test_interpolated_embeddings_do_not_make_the_base_another(saved):
    """Their last bits differ between processors."""
    model = configured(saved("vit"), image_size=48, **ARGUMENTS["lora"])
    before = frozen_digest(model.network)
    embeddings = model.network.get_base_model().vit.embeddings
    with torch.no_grad():
        embeddings.position_embeddings.mul_(1.0001)
    assert frozen_digest(model.network) == before
    with torch.no_grad():
        embeddings.cls_token.mul_(1.0001)
    assert frozen_digest(model.network) != before


def test_the_card_of_an_adapter_of_another_size_says_how_to_call_it(saved, tmp_path):
    model = configured(saved("vit"), image_size=48, **ARGUMENTS["lora"])
    write_model_folder(model, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "interpolate_pos_encoding=True" in text
    assert "pipeline(" not in text


@pytest.mark.parametrize(
    ("family", "size", "part"),
    [
        ("vit", 50, "multiple of the network's patches of 8 pixels, such as 48"),
        ("vit_msn", 48, "of type 'vit_msn' does not take images of 48 pixels"),
        ("vit", 0, "--model.image_size is 0; it must be at least 1"),
    ],
)
def test_a_size_that_the_network_does_not_take_is_refused(saved, family, size, part):
    with pytest.raises(UserError, match=part):
        configured(saved(family), image_size=size)


def test_a_size_is_for_checkpoints_only():
    with pytest.raises(UserError, match="has it as a field"):
        ViTClassifier(architecture={"model_type": "vit"}, image_size=48)


def test_the_crop_grows_with_the_size():
    spec = ImageSpec(224, 256, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert (spec.sized(336).size, spec.sized(336).resize_to) == (336, 384)
    assert spec.sized(None) is spec.sized(224) is spec
