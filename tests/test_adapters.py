import pytest
import torch
from lightning.pytorch import Trainer
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vitcls import ImageDataModule, LoRA, ViTClassifier
from vitcls.errors import UserError
from vitcls.models.adapters import add_lora, resolve_targets
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder
from vitcls.models.network import from_architecture, head_names

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL |= {"image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FAMILIES = {
    "vit": SMALL,
    "deit": {**SMALL, "architectures": ["DeiTForImageClassification"]},
    "beit": SMALL,
    "dinov2": {k: v for k, v in SMALL.items() if k != "intermediate_size"},
    "swin": SWIN,
    "convnext": {**STAGES, "num_stages": 2},
    "resnet": {**STAGES, "embedding_size": 8},
}


@pytest.fixture(scope="module")
def vit_base(tmp_path_factory):
    """ViT-B/16 with random weights, as it is published for ImageNet-21k: without a head."""
    folder = tmp_path_factory.mktemp("vit_base")
    torch.manual_seed(0)
    network = ViTForImageClassification(ViTConfig(num_labels=2))
    network.save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def configured(checkpoint, **arguments):
    model = ViTClassifier(str(checkpoint), labels=[f"dish {i}" for i in range(101)], **arguments)
    model.configure_model()
    return model


def test_lora_on_vit_base_trains_the_published_numbers(vit_base, tmp_path):
    model = configured(vit_base, adapter=LoRA(r=16, alpha=16, dropout=0.1, targets=["query", "value"]))
    assert model.parameter_counts() == (667_493, 86_543_818)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (tmp_path / "a.ckpt").stat().st_size <= 3_000_000


def test_full_fine_tuning_of_vit_base_trains_the_published_number(vit_base):
    assert configured(vit_base).parameter_counts() == (85_876_325, 85_876_325)


def test_the_head_alone_is_a_matrix_and_a_bias(vit_base):
    assert configured(vit_base, train="head").parameter_counts() == (768 * 101 + 101, 85_876_325)


def test_biases_train_with_the_head(vit_base):
    model = configured(vit_base, train="bias")
    trainable = [name for name, p in model.network.named_parameters() if p.requires_grad]
    assert [name for name in trainable if not name.endswith(".bias")] == ["classifier.weight"]
    # Each layer has 7 x 768 and 3072 in its biases; outside of them, patches and the last norm have 768 each.
    assert model.parameter_counts() == (12 * (7 * 768 + 3072) + 2 * 768 + 768 * 101 + 101, 85_876_325)


@pytest.mark.parametrize(
    ("published", "todays"),
    [
        (["query", "value"], ["q_proj", "v_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["query", "key", "value", "dense"], ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]),
        (["attention.output.dense", "intermediate.dense", "output.dense"], ["o_proj", "fc1", "fc2"]),
        (["query", "q_proj"], ["q_proj"]),
    ],
)
@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2", "swin"])
def test_published_names_mean_todays_layers(family, published, todays):
    network = from_architecture({"model_type": family, **FAMILIES[family]}, ["a", "b"])
    assert resolve_targets(network, published, head_names(network)) == todays


def test_an_adapter_names_the_revision_of_its_base():
    network = from_architecture({"model_type": "vit", **SMALL}, ["a", "b"])
    adapted = add_lora(network, LoRA(), head_names(network), revision="v2")
    assert adapted.peft_config["default"].revision == "v2"


def test_the_head_is_no_target():
    network = from_architecture({"model_type": "vit", **SMALL}, ["a", "b"])
    with pytest.raises(UserError, match="matches no layer"):
        resolve_targets(network, ["classifier"], head_names(network))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["all", "head", "bias", "lora"])
def test_every_family_is_trained_kept_and_loaded_by_the_same_lines(family, how, tmp_path, colours):
    network = from_architecture({"model_type": family, **FAMILIES[family]}, ["a", "b"])
    network.save_pretrained(tmp_path / "network")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "network")
    targets = {"convnext": ["pwconv1"], "resnet": ["convolution"]}.get(family, ["query", "value"])
    arguments = {
        "all": {},
        "head": {"train": "head"},
        "bias": {"train": "bias"},
        "lora": {"adapter": LoRA(r=2, targets=targets)},
    }[how]
    model = ViTClassifier(str(tmp_path / "network"), **arguments)
    data = ImageDataModule(str(colours), batch_size=16, num_workers=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **quiet)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ViTClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels), rtol=0, atol=0)
    assert loaded.labels == ["blue", "green", "red"]
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", pixels) <= TOLERANCE


def test_the_head_of_a_checkpoint_with_the_same_classes_is_kept(tmp_path):
    network = from_architecture({"model_type": "vit", **SMALL}, ["cat", "dog"])
    network.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    for labels, kept in ((["cat", "dog"], True), (["dog", "cat"], False), (["cow", "pig"], False)):
        model = ViTClassifier(str(tmp_path), labels=labels)
        model.configure_model()
        assert torch.equal(model.network.classifier.weight, network.classifier.weight) == kept
        assert model.network.config.id2label == dict(enumerate(labels))


def test_a_backbone_with_missing_weights_is_refused(tmp_path):
    network = from_architecture({"model_type": "vit", **SMALL}, ["cat", "dog"])
    state = {k: v for k, v in network.state_dict().items() if "layers.1.mlp" not in k}
    network.save_pretrained(tmp_path, state_dict=state)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lacks 4 weights of its backbone"):
        ViTClassifier(str(tmp_path), labels=["cat", "dog"]).configure_model()
