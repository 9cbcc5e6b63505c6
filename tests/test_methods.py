"""What every adapter method keeps to, on every kind of network."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import ViTImageProcessor

from tests.test_adapters import FAMILIES
from vitcls import ImageDataModule, LoRA, ViTClassifier
from vitcls.errors import UserError
from vitcls.models.adapters import add_lora, resolve_targets
from vitcls.models.folder import TOLERANCE, load_model_folder, reload_difference, write_model_folder
from vitcls.models.kept import frozen_digest
from vitcls.models.network import from_architecture, head_names
from vitcls.models.peft_methods import METHODS, can_merge
from vitcls.optim import parameter_groups

# What each method's weights are called, and small values for what it has.
LOW_RANK = {"r": 4, "alpha": 8}
CASES = {
    "lora": ("lora_", LOW_RANK),
    "rslora": ("lora_", LOW_RANK),
    "dora": ("lora_", LOW_RANK),
    "pissa": ("lora_", LOW_RANK),
    "olora": ("lora_", LOW_RANK),
    "loha": ("hada_", LOW_RANK),
    "lokr": ("lokr_", LOW_RANK),
    "oft": ("oft_R", {"block_size": 8}),
    "boft": ("boft_", {"block_size": 4}),
    "vera": ("vera_lambda_", {"r": 4}),
    "ia3": ("ia3_l", {}),
    "ln_tuning": ("ln_tuning_layers", {}),
    "fourierft": ("fourierft_spectrum", {"frequencies": 16}),
}
# With ConvNeXt's own scale of 1e-6 no adapter would show in its logits.
NETWORKS = {**FAMILIES, "convnext": {**FAMILIES["convnext"], "layer_scale_init_value": 1.0}}
TARGETS = {"convnext": ["mlp"], "resnet": ["convolution"]}
PAIRS = [(f, m) for f in ("vit", "deit", "swin", "convnext") for m in CASES if (f, m) != ("convnext", "oft")]
PAIRS += [("resnet", m) for m in ("lora", "rslora", "dora", "loha", "lokr", "ia3")]


def adapter_of(family, method, **more):
    targets = {} if method == "ln_tuning" else {"targets": TARGETS.get(family, ["attention", "mlp"])}
    return LoRA(method=method, **CASES[method][1], **targets, **more)


def network_of(family):
    torch.manual_seed(0)
    return from_architecture({"model_type": family, **NETWORKS[family]}, ["a", "b"])


class Gradients(Callback):
    """Names of the parameters that a gradient has reached."""

    def __init__(self):
        self.reached = set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.network.named_parameters()
        self.reached |= {name for name, p in named if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def trained(request, tmp_path_factory, colours):
    """A network after two steps with an adapter, its checkpoint and its folder."""
    family, method = request.param
    folder = tmp_path_factory.mktemp("trained")
    network_of(family).save_pretrained(folder / "network")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "network")
    model = ViTClassifier(
        str(folder / "network"), adapter=adapter_of(family, method), lr=1e-2, warmup_steps=0, schedule="constant"
    )
    gradients = Gradients()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, callbacks=[gradients], **quiet)
    trainer.fit(model, ImageDataModule(str(colours), batch_size=16, num_workers=0))
    trainer.save_checkpoint(folder / "a.ckpt", weights_only=True)
    write_model_folder(model, folder / "model")
    pixels = torch.randn(4, 3, 32, 32)
    return SimpleNamespace(method=method, model=model.eval(), gradients=gradients, folder=folder, pixels=pixels)


def difference(network, trained):
    with torch.inference_mode():
        logits = getattr(out := network(trained.pixels), "logits", out)
        return (logits - trained.model(trained.pixels)).abs().max().item()


def test_only_adapter_and_head_train(trained):
    network = trained.model.network
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    weights = {name for name in names if f".{CASES[trained.method][0]}" in name}
    head = {name for name in names if ".modules_to_save." in name}
    assert weights
    assert len(head) == 2
    assert names == weights | head


def test_a_gradient_reaches_all_that_trains_within_two_steps(trained):
    names = {name for name, p in trained.model.network.named_parameters() if p.requires_grad}
    assert names - trained.gradients.reached == set()


def test_a_checkpoint_gives_the_same_logits(trained):
    loaded = ViTClassifier.load_from_checkpoint(trained.folder / "a.ckpt", weights_only=True).eval()
    assert difference(loaded, trained) <= TOLERANCE
    assert loaded.labels == ["blue", "green", "red"]


def test_a_folder_gives_the_same_logits_and_labels(trained):
    assert reload_difference(trained.model, trained.folder / "model", trained.pixels) <= TOLERANCE
    labels = load_model_folder(trained.folder / "model").config.id2label
    assert list(labels.values()) == ["blue", "green", "red"]


def test_merging_changes_nothing_and_the_card_promises_no_more(trained):
    card = (trained.folder / "model" / "README.md").read_text()
    assert ("merge_and_unload" in card) == can_merge(trained.model.network)
    network = copy.deepcopy(trained.model.network)
    if not can_merge(network):
        with pytest.raises(AttributeError, match="Sequential"):
            network.merge_and_unload()
        return
    assert difference(network.merge_and_unload(), trained) <= TOLERANCE


def test_lora_on_grouped_convolutions_cannot_be_merged():
    network = network_of("convnext")
    adapted = add_lora(network, LoRA(r=16, targets=["dwconv"]), head_names(network))
    assert not can_merge(adapted)
    with pytest.raises(NotImplementedError):  # by peft: what the card therefore does not promise
        adapted.merge_and_unload()


def test_every_method_has_a_case():
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize(
    ("family", "adapter", "told"),
    [
        ("vit", {"method": "ia3", "r": 4}, r"adapter\.r is 4, but the method ia3 has no r.*What it has: targets\."),
        ("vit", {"method": "vera", "alpha": 4}, r"adapter\.alpha is 4.*targets, r, dropout, bias"),
        ("vit", {"method": "loha", "dropout": 0.5}, r"adapter\.dropout is 0\.5.*targets, r, alpha"),
        ("vit", {"block_size": 4}, r"adapter\.block_size is 4, but the method lora has no block_size"),
        ("vit", {"method": "loar"}, r"adapter\.method is 'loar' \(did you mean 'lora'\?\).*fourierft"),
        ("vit", {"method": "oft", "bias": "lora_only"}, r"bias is 'lora_only', but the method oft has 'none' and"),
        ("vit", {"method": "oft", "block_size": 12}, r"block_size is 12, which does not divide the 32 inputs"),
        ("vit", {"method": "boft", "block_size": 0}, r"block_size is 0; it must be at least 1"),
        ("vit", {"method": "fourierft", "frequencies": 2000}, r"fourierft does not fit the layers q_proj, v_proj"),
        ("vit", {"method": "olora", "r": 64}, r"r is 64, .*olora.*rank is at most 32"),
        ("vit", {"method": "pissa", "r": 64}, r"r is 64, .*pissa.*rank is at most 32"),
        ("vit", {"method": "vera", "targets": ["projection"]}, r"vera cannot wrap .*\(Conv2d\).*lora, rslora, dora"),
        ("vit", {"targets": ["attentoin"]}, r"did you mean 'attention'.*attention, qv, mlp, all-linear"),
        (
            "convnext",
            {"targets": ["attention"]},
            r"'attention'.*matches no layer.*\(or, for several: mlp, all-linear\)",
        ),
        ("convnext", {"method": "oft", "targets": ["mlp"]}, r"oft cannot wrap .*\(Linear of images\).*lora, .*boft"),
        ("convnext", {"targets": ["dwconv"], "r": 3}, r"lora does not fit the layers dwconv.*groups=8"),
        ("resnet", {"targets": ["all-linear"]}, r"'all-linear'.*matches no layer.*convolution"),
        ("resnet", {"method": "olora", "targets": ["convolution"]}, r"olora cannot wrap .*loha, lokr, ia3\."),
        ("resnet", {"method": "ln_tuning"}, r"ln_tuning trains layer norms, and this network has none.*lora, .*ia3\."),
    ],
)
def test_what_a_method_cannot_do_is_told_in_one_sentence(family, adapter, told):
    network = network_of(family)
    with pytest.raises(UserError, match=told):
        add_lora(network, LoRA(**adapter), head_names(network))


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2", "swin"])
def test_aliases_mean_the_same_layers_in_every_transformer(family):
    network, swin = network_of(family), ["reduction"] if family == "swin" else []
    head = head_names(network)
    assert resolve_targets(network, ["attention"], head) == ATTENTION
    assert resolve_targets(network, ["qv"], head) == ["q_proj", "v_proj"]
    assert resolve_targets(network, ["mlp"], head) == ["fc1", "fc2"]
    assert sorted(resolve_targets(network, ["all-linear"], head)) == sorted([*ATTENTION, "fc1", "fc2", *swin])


def test_the_mlp_of_convnext_is_all_that_is_linear_in_it():
    network = network_of("convnext")
    assert resolve_targets(network, ["mlp"], head_names(network)) == ["pwconv1", "pwconv2"]
    assert resolve_targets(network, ["all-linear"], head_names(network)) == ["pwconv1", "pwconv2"]


def test_ia3_scales_what_goes_into_the_second_layer_of_an_mlp():
    network = network_of("vit")
    config = add_lora(network, LoRA(method="ia3", targets=["qv", "mlp"]), head_names(network)).peft_config["default"]
    assert config.feedforward_modules == {"fc2"}


def test_norms_can_be_chosen():
    network = network_of("vit")
    adapted = add_lora(network, LoRA(method="ln_tuning", targets=["layernorm_after"]), head_names(network))
    names = [n for n, p in adapted.named_parameters() if p.requires_grad and "modules_to_save" not in n]
    assert len(names) == 4  # weight and bias in each of two blocks
    assert all("layernorm_after" in name for name in names)


@pytest.mark.parametrize(("method", "factor"), [("ia3", "ia3_l"), ("boft", "boft_s")])
def test_factors_that_start_at_one_do_not_decay(method, factor):
    network = network_of("vit")
    adapted = add_lora(network, adapter_of("vit", method), head_names(network))
    decaying = {id(p) for p in parameter_groups(adapted, 1.0, 0.1)[0]["params"]}
    factors = [p for name, p in adapted.named_parameters() if factor in name]
    assert factors
    assert not any(id(p) in decaying for p in factors)


def test_a_checkpoint_from_before_there_were_methods_is_of_lora():
    old = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["query"], "bias": "none"}
    network = network_of("vit")
    config = add_lora(network, LoRA(**old), head_names(network)).peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_dora, config.use_rslora) == (2, 4, False, False)


@pytest.mark.parametrize(("method", "told"), [("lora", True), ("olora", False), ("pissa", False)])
def test_what_a_method_computes_of_the_weights_does_not_tell_bases_apart(method, told):
    """Its last bits depend on the number of threads: by 1e-6 on ViT-B/16's layers."""
    network = network_of("vit")
    adapted = add_lora(network, adapter_of("vit", method), head_names(network))
    before = frozen_digest(adapted)
    adapted.get_submodule("base_model.model.vit.layers.0.attention.q_proj.base_layer").weight.data.mul_(1 + 1e-6)
    assert (frozen_digest(adapted) != before) == told
    adapted.get_submodule("base_model.model.vit.layernorm").weight.data.mul_(1.01)
    assert frozen_digest(adapted) != before
