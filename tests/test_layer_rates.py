"""Learning rates of layers and the groups without decay, of every kind of network that is promised."""

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.conftest import TINY
from vitcls.errors import UserError
from vitcls.models.adapters import LoRA, add_lora
from vitcls.models.layer_rates import rates_of_layers
from vitcls.optim import parameter_groups

FLAT = {**TINY, "num_hidden_layers": 3}
CONVOLUTIONS = {"hidden_sizes": [8, 16], "depths": [1, 2]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}
POSITIONS = {"use_absolute_position_embeddings": True, "use_mask_token": True}
NETWORKS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**FLAT)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**FLAT)),
    "beit": lambda: BeitForImageClassification(BeitConfig(**FLAT, **POSITIONS, use_relative_position_bias=True)),
    "beit, shared": lambda: BeitForImageClassification(BeitConfig(**FLAT, use_shared_relative_position_bias=True)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**FLAT)),
    "swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, use_absolute_embeddings=True)),
    "convnext": lambda: ConvNextForImageClassification(ConvNextConfig(**CONVOLUTIONS, num_stages=2)),
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(**CONVOLUTIONS, embedding_size=8)),
}
# The power of layer_decay of each part; every network here has 3 blocks. The first prefix that fits counts.
FLAT_POWERS = {"embeddings.": 4, "layers.0.": 3, "layers.1.": 2, "layers.2.": 1, "": 0}
POWERS = {
    "vit": FLAT_POWERS,
    "deit": FLAT_POWERS,
    "beit": FLAT_POWERS,
    "beit, shared": FLAT_POWERS,
    "dinov2": {"embeddings.": 4, "encoder.layer.0.": 3, "encoder.layer.1.": 2, "encoder.layer.2.": 1, "": 0},
    "swin": {
        "embeddings.": 4,
        "encoder.layers.0.": 3,  # its block and what joins it to the next stage
        "encoder.layers.1.blocks.0.": 2,
        "encoder.layers.1.blocks.1.": 1,
        "": 0,
    },
    "convnext": {
        "embeddings.": 4,
        "encoder.stages.0.": 3,
        "encoder.stages.1.downsampling_layer.": 2,
        "encoder.stages.1.layers.0.": 2,
        "encoder.stages.1.layers.1.": 1,
        "": 0,
    },
    "resnet": {
        "embedder.": 4,
        "encoder.stages.0.layers.0.": 3,
        "encoder.stages.1.layers.0.": 2,
        "encoder.stages.1.layers.1.": 1,
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rate_of_every_parameter(name):
    network = NETWORKS[name]()
    prefix = f"{network.base_model_prefix}."
    rates = rates_of_layers(network, 0.1, 0.7, 0.5)
    used = set()
    for parameter, rate in rates.items():
        if not parameter.startswith(prefix):
            assert (parameter.split(".")[0].endswith("classifier"), rate) == (True, 0.7)
            continue
        part = next(p for p in POWERS[name] if parameter.removeprefix(prefix).startswith(p))
        assert rate == pytest.approx(0.1 * 0.5 ** POWERS[name][part]), parameter
        used.add(part)
    assert used == set(POWERS[name])
    assert set(rates) == {n for n, _ in network.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_added_to_the_tokens_does_not_decay(name):
    network = NETWORKS[name]()
    decay, none = parameter_groups(network, 0.1, 0.2)
    assert (decay["weight_decay"], none["weight_decay"]) == (0.2, 0.0)
    name_of = {id(p): n for n, p in network.named_parameters()}
    decaying = {name_of[id(p)] for p in decay["params"]}
    assert all(n.endswith("weight") for n in decaying)
    kept = {name_of[id(p)] for p in none["params"] if p.ndim > 1}
    expected = {
        "vit": {"cls_token", "position_embeddings"},
        "deit": {"cls_token", "distillation_token", "position_embeddings"},
        "beit": {"cls_token", "mask_token", "position_embeddings", "relative_position_bias_table"},
        "beit, shared": {"cls_token", "relative_position_bias_table"},
        "dinov2": {"cls_token", "mask_token", "position_embeddings"},
        "swin": {"position_embeddings", "relative_position_bias_table"},
    }
    assert {n.rsplit(".", 1)[-1] for n in kept} - {"mask_token"} == expected.get(name, set()) - {"mask_token"}
    assert len(decay["params"]) + len(none["params"]) == len(name_of)


def test_every_parameter_is_in_one_group_of_its_rate():
    network = NETWORKS["vit"]()
    groups = parameter_groups(network, 0.1, 0.2, rates_of_layers(network, 0.1, None, 0.5))
    assert [g["lr"] for g in groups[:2]] == [pytest.approx(0.1 / 16)] * 2
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    assert len(groups) == 2 * 5


def test_the_head_of_an_adapted_network_has_its_rate():
    network = add_lora(NETWORKS["vit"](), LoRA(r=2), ["classifier"])
    groups = parameter_groups(network, 0.1, 0.2, rates_of_layers(network, 0.1, 0.7, 1))
    head = {id(p) for n, p in network.named_parameters() if "classifier" in n and p.requires_grad}
    assert {id(p) for g in groups if g["lr"] == 0.7 for p in g["params"]} == head
    assert len(head) == 2


def test_the_matrices_b_have_a_rate_of_their_own():
    """LoRA+: B's is `b_lr_ratio` times A's; the head keeps its own."""
    network = add_lora(NETWORKS["vit"](), LoRA(r=2, bias="all"), ["classifier"])
    groups = parameter_groups(network, 0.1, 0.2, rates_of_layers(network, 0.1, 0.7, 1, b_lr_ratio=16))
    name_of = {id(p): n for n, p in network.named_parameters()}
    rates = {name_of[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {1.6}
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {0.1}
    assert {rate for name, rate in rates.items() if "classifier" in name} == {0.7}
    assert sum(".lora_B." in name for name in rates) == 2 * 3


def test_a_fit_and_its_resume_have_the_rates_of_lora_plus(vitcls, fit_words, tmp_path):
    words = ["--model.lr=0.01", "--model.adapter.r=2", "--model.adapter.b_lr_ratio=16", "--model.schedule=constant"]
    assert vitcls(*fit_words, *words, "--trainer.max_epochs=1")[0] == 0
    run = tmp_path / "runs" / "run"
    assert sorted(set(rates_in(run / "last.ckpt"))) == pytest.approx([0.01, 0.16])
    assert vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=2", "--model.adapter.b_lr_ratio=4")[0] == 0
    assert sorted(set(rates_in(run / "last.ckpt"))) == pytest.approx([0.01, 0.04])


def test_a_network_whose_depth_cannot_be_told_is_refused():
    with torch.device("meta"):
        network = EfficientNetForImageClassification(EfficientNetConfig())
    with pytest.raises(UserError, match="EfficientNetForImageClassification does not tell by its names"):
        rates_of_layers(network, 0.1, None, 0.5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.layer_decay=0.5", "--model.adapter.r=2"], "but --model.adapter freezes the layers"),
        (["--model.layer_decay=0.5", "--model.train=head"], "but --model.train head freezes the layers"),
        (["--model.layer_decay=0"], "--model.layer_decay is 0.0; it must be above 0 and at most 1"),
        (["--model.adapter.b_lr_ratio=0.5"], "--model.adapter.b_lr_ratio is 0.5; it must be at least 1"),
        (["--model.adapter.b_lr_ratio=4", "--model.adapter.method=ia3"], "the method ia3 has no matrices A and B"),
        (["--model.head_lr=0"], "--model.head_lr is 0.0; it must be above 0"),
        (["--model.head_lr=1", "--model.train=head"], "set --model.head_lr to null"),
    ],
)
def test_rates_that_cannot_be_are_refused(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, *words)


def rates_in(checkpoint) -> list[float]:
    content = torch.load(checkpoint, weights_only=True)
    return [group["initial_lr"] for group in content["optimizer_states"][0]["param_groups"]]


def test_a_resume_takes_new_rates_of_the_same_groups_and_refuses_others(vitcls, refuses, fit_words, tmp_path):
    words = ["--model.lr=0.01", "--model.head_lr=0.1", "--model.layer_decay=0.5", "--model.schedule=constant"]
    assert vitcls(*fit_words, *words, "--trainer.max_epochs=1")[0] == 0
    run = tmp_path / "runs" / "run"
    # Of 2 blocks: the embeddings, block 0, block 1, the norm (vectors alone), the head.
    powers = [3, 3, 2, 2, 1, 1, 0]
    assert rates_in(run / "last.ckpt") == pytest.approx([0.01 * 0.5**p for p in powers] + [0.1] * 2)
    again = ["fit", "--ckpt_path", run, "--trainer.max_epochs=2", "--model.lr=0.02", "--model.layer_decay=0.1"]
    assert vitcls(*again)[0] == 0
    assert rates_in(run / "last.ckpt") == pytest.approx([0.02 * 0.1**p for p in powers] + [0.1] * 2)
    other = ["fit", "--ckpt_path", run, "--trainer.max_epochs=3", "--model.layer_decay=1"]
    assert "--model.head_lr, --model.layer_decay, --model.adapter.b_lr_ratio and" in refuses(*other)
