"""What every way of training keeps to, on every kind of network."""

import json

import pytest

from vitcls import LoRA
from vitcls.errors import UserError
from vitcls.methods.command import cell
from vitcls.methods.networks import FAMILIES, network_of
from vitcls.methods.trial import Found, tried
from vitcls.methods.ways import WAYS, arguments_of
from vitcls.models.adapters import add_lora, resolve_targets
from vitcls.models.kept import frozen_digest
from vitcls.models.network import from_architecture, head_names
from vitcls.models.peft_methods import METHODS, can_merge
from vitcls.optim import parameter_groups

ADAPTERS = tuple(METHODS)
# What a way is not for; the table of `python -m vitcls methods` has an empty place there.
NOT_FOR = {("oft", "convnext"), *((way, "resnet") for way in ("pissa", "olora", "oft", "boft", "vera", "ln_tuning"))}
NOT_FOR |= {("fourierft", "resnet"), ("adalora", "resnet")}
# peft merges, and the model card promises it.
MERGED = {(way, family) for way in ADAPTERS for family in FAMILIES} - NOT_FOR
MERGED -= {("loha", "resnet"), ("lokr", "resnet"), ("ia3", "resnet")}


def adapter_of(family, method):
    return arguments_of(method, family)["adapter"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_way_trains_resumes_exports_and_merges(way, family, tmp_path):
    if (way, family) in NOT_FOR:
        with pytest.raises(UserError, match=way):
            tried(way, family, tmp_path)
        return
    found = tried(way, family, tmp_path)
    assert (found.trains, found.resumes, found.exports) == ("", "", "")
    assert found.merges == ("" if (way, family) in MERGED else None)
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("merge_and_unload" in card) == ((way, family) in MERGED)


def test_only_adapter_and_head_train():
    for method, weights in {"lora": "lora_", "oft": "oft_R", "vera": "vera_lambda_", "ia3": "ia3_l"}.items():
        network = network_of("vit")
        adapted = add_lora(network, adapter_of("vit", method), head_names(network))
        names = {name for name, p in adapted.named_parameters() if p.requires_grad}
        assert {name for name in names if f".{weights}" in name or ".modules_to_save." in name} == names


def test_what_cannot_be_merged_fails_in_peft():
    """What the card therefore does not promise."""
    network = network_of("resnet")
    adapted = add_lora(network, adapter_of("resnet", "loha"), head_names(network))
    with pytest.raises(AttributeError, match="Sequential"):
        adapted.merge_and_unload()


def test_the_table_says_what_was_found(vitcls, tmp_path):
    words = ["methods", "--methods=[lora, oft, head]", "--families=[vit, resnet]", f"--output={tmp_path}/found.json"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "667,493" in rows["lora"]
    assert rows["lora"].count("TREM") == 2
    assert rows["oft"].count("TREM") == 1
    assert rows["head"].count("TRE-") == 2
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["oft"]["families"]["resnet"] is None
    assert found["lora"]["families"]["vit"] == {"trains": "", "resumes": "", "exports": "", "merges": ""}


def test_the_table_says_what_fails():
    assert cell(Found(trains="", resumes="it differs", exports="", merges=None)) == "T!E-"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods=[loar]"], "--methods names 'loar' (did you mean 'lora'?)"),
        (["--families=[vti]"], "--families names 'vti' (did you mean 'vit'?)"),
        (["--output=nowhere/found.json"], "is in a folder that does not exist"),
    ],
)
def test_a_table_that_cannot_be_is_refused(refuses, words, told):
    assert told in refuses("methods", *words)


def test_lora_on_grouped_convolutions_cannot_be_merged():
    network = network_of("convnext")
    adapted = add_lora(network, LoRA(r=16, targets=["dwconv"]), head_names(network))
    assert not can_merge(adapted)
    with pytest.raises(NotImplementedError):  # by peft: what the card therefore does not promise
        adapted.merge_and_unload()


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


def test_the_mlp_of_a_large_dinov2_is_adapted_too():
    fields = {**FAMILIES["dinov2"], "use_swiglu_ffn": True}
    network = from_architecture({"model_type": "dinov2", **fields}, ["a", "b"])
    assert resolve_targets(network, ["mlp"], head_names(network)) == ["gate_proj", "up_proj", "down_proj"]


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
