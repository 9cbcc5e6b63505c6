"""Adapters that others have published are checkpoints, under the names of transformers 4 and of today."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessor

from vitcls import LoRA, ViTClassifier
from vitcls.errors import UserError
from vitcls.methods.networks import LABELS, SIZE, network_of
from vitcls.methods.trial import Noise, _fit, _Watch
from vitcls.models.adapters import add_lora
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder
from vitcls.models.network import head_names, spec_at

FAMILIES = ["vit", "deit", "beit", "dinov2", "swin"]
PIXELS = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
# What the guides say, and what the adapters that follow them have in their files.
PUBLISHED = {
    "vit.layers.{}.attention.q_proj": "vit.encoder.layer.{}.attention.attention.query",
    "vit.layers.{}.attention.v_proj": "vit.encoder.layer.{}.attention.attention.value",
    "vit.layers.{}.attention.o_proj": "vit.encoder.layer.{}.attention.output.dense",
    "vit.layers.{}.mlp.fc1": "vit.encoder.layer.{}.intermediate.dense",
    "vit.layers.{}.mlp.fc2": "vit.encoder.layer.{}.output.dense",
}


def save_base(family, folder):
    network_of(family).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def names_in_files(family, base):
    """Today's name of each layer -> the one that transformers writes into its files, found by the weights."""
    written = load_file(base / "model.safetensors")
    todays = {name: tensor for name, tensor in network_of(family).state_dict().items() if tensor.ndim > 1}
    return {
        name.rpartition(".")[0]: next(
            key.rpartition(".")[0] for key, other in written.items() if torch.equal(other, tensor)
        )
        for name, tensor in todays.items()
        if name.endswith(".weight")
    }


def publish(family, folder, lora=None, names=None, words=("query", "value")):
    """An adapter with random values as it was saved by transformers 4; gives the logits that it must give."""
    base = AutoModelForImageClassification.from_pretrained(folder / "base")
    adapted = add_lora(base, lora or LoRA(r=2, alpha=4), head_names(base))
    torch.manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder / "adapter")
    if names is not None:
        rewrite(folder / "adapter", names, words)
    with torch.inference_mode():
        return adapted.eval()(pixel_values=PIXELS).logits


def rewrite(adapter, names, words):
    file = adapter / "adapter_model.safetensors"
    renamed = {}
    for key, tensor in load_file(file).items():
        layer = next((n for n in names if key.startswith(f"base_model.model.{n}.")), None)
        renamed[key if layer is None else key.replace(layer, names[layer], 1)] = tensor
    save_file(renamed, file)
    change_config(adapter, target_modules=list(words))


def change_config(adapter, **fields):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def loaded(adapter, labels=LABELS, **arguments):
    model = ViTClassifier(str(adapter), labels=labels, **arguments)
    model.configure_model()
    return model.eval()


def difference(model, logits):
    with torch.inference_mode():
        return (model(PIXELS) - logits).abs().max().item()


@pytest.mark.parametrize("names_of", ["transformers 4", "today"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_gives_the_logits_that_it_was_saved_with(family, names_of, tmp_path):
    save_base(family, tmp_path / "base")
    names = names_in_files(family, tmp_path / "base") if names_of == "transformers 4" else None
    logits = publish(family, tmp_path, names=names)
    if names is not None:
        keys = " ".join(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
        assert "query.lora_A" in keys
        assert "q_proj" not in keys
    model = loaded(tmp_path / "adapter")
    assert not isinstance(model.network, PeftModel)
    assert difference(model, logits) <= TOLERANCE
    assert difference(loaded(tmp_path / "base"), logits) > 0.01
    masked = [name for name, p in model.network.named_parameters() if not p.requires_grad]
    assert all(name.endswith("mask_token") for name in masked)


@pytest.fixture
def vit(tmp_path):
    """A base beside which an adapter can be published, with the guides' names of layers."""
    save_base("vit", tmp_path / "base")
    return {new.format(n): old.format(n) for new, old in PUBLISHED.items() for n in range(2)}


def test_the_names_of_the_guides_are_understood(vit, tmp_path):
    logits = publish("vit", tmp_path, names=vit)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight" in keys
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE


@pytest.mark.parametrize(
    "method", ["dora", "rslora", "pissa", "loha", "lokr", "oft", "boft", "vera", "ia3", "fourierft"]
)
def test_other_methods_on_layers_that_were_all_called_dense(method, vit, tmp_path):
    values = {"boft": {"block_size": 4}, "oft": {"block_size": 8}, "ia3": {}, "fourierft": {"frequencies": 16}}
    lora = LoRA(method=method, targets=["o_proj", "fc1", "fc2"], **values.get(method, {"r": 4}))
    logits = publish("vit", tmp_path, lora, vit, words=["dense"])
    if method == "ia3":
        words = [f"layer.{n}.output.dense" for n in range(2)]  # the attention's ended in `output.dense` too
        change_config(tmp_path / "adapter", feedforward_modules=words, target_modules=["dense", *words])
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE


def test_only_the_layers_that_were_adapted_are_changed(vit, tmp_path):
    """`dense` meant three layers; the file says which of them the adapter had."""
    logits = publish("vit", tmp_path, LoRA(r=2, targets=["fc1"]), vit, words=["dense"])
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE


def test_ranks_and_scales_of_single_layers_go_with_them(vit, tmp_path):
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    patterns = {"rank_pattern": {"layers.1.attention.q_proj": 3}, "alpha_pattern": {"v_proj": 9}}
    chosen = ["q_proj", "v_proj"]
    config = LoraConfig(r=2, target_modules=chosen, modules_to_save=["classifier"], init_lora_weights=False, **patterns)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    logits = adapted.eval()(pixel_values=PIXELS).logits.detach()
    rewrite(tmp_path / "adapter", vit, ["query", "value"])
    change_config(
        tmp_path / "adapter",
        rank_pattern={"encoder.layer.1.attention.attention.query": 3},
        alpha_pattern={"attention.value": 9},
    )
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE


def test_trained_biases_are_taken_over(vit, tmp_path):
    logits = publish("vit", tmp_path, LoRA(r=2, bias="all"), vit)
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE


def test_weights_in_an_old_file_are_read_without_being_executed(vit, tmp_path):
    logits = publish("vit", tmp_path, names=vit)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter" / "adapter_model.bin")
    file.unlink()
    assert difference(loaded(tmp_path / "adapter"), logits) <= TOLERANCE
    torch.save({"a": print}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"weights of the adapter .* cannot be read"):
        loaded(tmp_path / "adapter")


def test_the_number_of_classes_is_that_of_the_adapters_head(vit, tmp_path):
    base = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))
    adapted.save_pretrained(tmp_path / "adapter")
    logits = adapted.eval()(pixel_values=PIXELS).logits.detach()
    assert ViTClassifier(str(tmp_path / "adapter")).labels is None
    assert difference(loaded(tmp_path / "adapter", ["x", "y", "z"]), logits) <= TOLERANCE
    base.config.id2label = {0: "cow", 1: "pig", 2: "hen"}
    base.config.save_pretrained(tmp_path / "adapter")
    assert ViTClassifier(str(tmp_path / "adapter")).labels == ["cow", "pig", "hen"]
    base.config.id2label = {0: "cow", 1: "pig"}
    base.config.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"has 3 classes, but its config\.json names 2"):
        loaded(tmp_path / "adapter", None)


def test_images_are_prepared_as_the_adapter_says_else_as_its_base(vit, tmp_path):
    publish("vit", tmp_path)
    assert spec_at(str(tmp_path / "adapter")) == spec_at(str(tmp_path / "base"))
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "adapter")
    assert spec_at(str(tmp_path / "adapter")).size == 64
    model = loaded(tmp_path / "adapter")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2)  # positions were interpolated


FURTHER = {"full": {}, "lora": {"adapter": LoRA(r=2, dropout=0.0)}, "head": {"train": "head"}}


@pytest.mark.parametrize("arguments", FURTHER.values(), ids=FURTHER)
def test_it_is_trained_further_kept_resumed_and_exported(arguments, vit, tmp_path):
    publish("vit", tmp_path, names=vit)
    network_of("vit").config.save_pretrained(tmp_path / "adapter")  # it names the classes
    fresh = [ViTClassifier(str(tmp_path / "adapter"), lr=1e-3, **copy.deepcopy(arguments)) for _ in range(2)]
    _fit(fresh[0], [_Watch(tmp_path)])
    _fit(fresh[1], after=tmp_path / "epoch0.ckpt")
    states = [model.state_dict() for model in fresh]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    write_model_folder(fresh[0], tmp_path / "model")
    assert reload_difference(fresh[0], tmp_path / "model", PIXELS) <= TOLERANCE
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    again = ViTClassifier.load_from_checkpoint(tmp_path / "epoch0.ckpt", weights_only=True)
    assert again.labels == Noise.labels


def test_a_head_of_the_same_classes_is_trained_on_and_another_starts_anew(vit, tmp_path):
    publish("vit", tmp_path, names=vit)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    network_of("vit").config.save_pretrained(tmp_path / "adapter")
    for labels, kept in ((LABELS, True), (["b", "a"], False), (["x", "y", "z"], False)):
        assert torch.equal(loaded(tmp_path / "adapter", labels).network.classifier.weight, saved) == kept


def test_another_adapter_is_told_apart_in_a_checkpoint(vit, tmp_path):
    publish("vit", tmp_path, names=vit)
    digests = [loaded(tmp_path / "adapter", train="head")._frozen_digest for _ in range(2)]
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor * 1.01 for key, tensor in load_file(file).items()}, file)
    assert digests[0] == digests[1]
    assert loaded(tmp_path / "adapter", train="head")._frozen_digest != digests[0]


def without(key):
    return lambda tensors: {k: t for k, t in tensors.items() if key not in k}


def narrowed(key):
    return lambda tensors: {k: t[..., :16].contiguous() if key in k else t for k, t in tensors.items()}


def also(key):
    return lambda tensors: tensors | {f"base_model.model.vit.layers.{key}": torch.zeros(2, 32)}


MISFITS = {
    "a tensor is missing": (without("0.attention.q_proj.lora_A"), r"without their counterpart are .*0.*q_proj\.lora_A"),
    "there are none": (without(""), r"the file has no weights"),
    "a layer too many": (also("7.attention.q_proj.lora_A.weight"), r"no place for vit\.layers\.7"),
    "a tensor too many": (also("0.attention.q_proj.other"), r"without their counterpart are .*q_proj.*other"),
    "another shape": (narrowed("lora_A"), r"size mismatch.*lora_A"),
    "another head": (narrowed("classifier.weight"), r"classifier\.weight is \(2, 32\), the adapter's \(2, 16\)"),
    "not a number": (lambda tensors: {k: t * float("nan") for k, t in tensors.items()}, r"NaNs"),
}


@pytest.mark.parametrize(("change", "told"), MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_told_in_one_sentence(change, told, vit, tmp_path):
    publish("vit", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=told):
        loaded(tmp_path / "adapter")


def test_a_base_that_is_missing_or_wrong_is_told_in_one_sentence(refuses, vit, tmp_path, colours):
    publish("vit", tmp_path)
    adapter = tmp_path / "adapter"
    words = ("predict", "--model.checkpoint", adapter, "--data.predict", colours / "test")
    assert "fine-tuned --model.checkpoint that has class names, or whose classes --model.labels names" in refuses(
        *words
    )
    words += ("--model.labels=[a, b]",)
    shutil.copytree(adapter, tmp_path / "second")
    for field, value, told in (
        ("base_model_name_or_path", str(tmp_path / "second"), "names another adapter"),
        ("base_model_name_or_path", str(tmp_path / "gone"), "which cannot be had; fetch it, or correct"),
        ("base_model_name_or_path", None, "does not say what it is an adapter of"),
    ):
        before = json.loads((adapter / "adapter_config.json").read_text())
        change_config(adapter, **{field: value})
        assert told in refuses(*words)
        (adapter / "adapter_config.json").write_text(json.dumps(before))
    (tmp_path / "second" / "adapter_config.json").write_text('{"peft_type": "MISS", "base_model_name_or_path": "a"}')
    assert "is of peft's MissConfig" in refuses(*words, "--model.checkpoint", tmp_path / "second")
    change_config(adapter, init_lora_weights="pissa_niter_4")
    assert "cannot be had again" in refuses(*words)


def test_predictions_are_those_of_the_adapter(vitcls, vit, tmp_path, colours):
    publish("vit", tmp_path, names=vit)
    words = ("predict", "--data.predict", colours / "test" / "red", "--model.labels=[a, b]", "--data.num_workers=0")
    status, _, err = vitcls(*words, "--model.checkpoint", tmp_path / "adapter", "--output", tmp_path / "a.csv")
    assert status == 0, err
    network = loaded(tmp_path / "adapter").network
    network.save_pretrained(tmp_path / "merged")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "merged")
    assert vitcls(*words, "--model.checkpoint", tmp_path / "merged", "--output", tmp_path / "m.csv")[0] == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "m.csv").read_text()
