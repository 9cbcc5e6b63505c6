"""transformers' image classifiers: from a checkpoint or from scratch, with the head that the labels need."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig
from transformers.utils import logging as transformers_logging

from vitcls.data.preprocess import ImageSpec, spec_of_checkpoint
from vitcls.errors import UserError, listing, suggestion
from vitcls.models.merged_adapter import merge_adapter
from vitcls.models.published_adapter import PublishedAdapter, config_with_adapter, find_adapter
from vitcls.types import Task


def load_config(checkpoint: str, revision: str | None = None) -> PretrainedConfig:
    """A checkpoint's configuration.

    Raises:
        UserError: no such checkpoint, no configuration in it, or the Hub cannot be reached.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_dir() and (path.is_absolute() or checkpoint[:1] in "~." or checkpoint.count("/") > 1):
        raise UserError(
            f"The checkpoint folder {checkpoint!r} does not exist. Give a folder in transformers' "
            "format or a Hub id such as google/vit-base-patch16-224-in21k with --model.checkpoint."
        )
    adapter = adapter_at(checkpoint, revision)
    if adapter is not None:
        with _of_base(adapter):
            config = load_config(*adapter.base)
        return config_with_adapter(adapter, config)
    with explained(checkpoint):
        return AutoConfig.from_pretrained(place_of(checkpoint), revision=revision, trust_remote_code=False)


def adapter_at(checkpoint: str, revision: str | None = None) -> PublishedAdapter | None:
    """The adapter that a checkpoint is, whose base can be had; None where it is none.

    Raises:
        UserError: it cannot be read, or its base is an adapter itself.
    """
    with explained(checkpoint):
        adapter = find_adapter(place_of(checkpoint), revision)
    if adapter is None:
        return None
    with _of_base(adapter):
        found = find_adapter(place_of(adapter.base[0]), adapter.base[1])
    if found is not None:
        raise UserError(
            f"The adapter {checkpoint!r} names another adapter, {adapter.base[0]!r}, as its base in its "
            "adapter_config.json; merge that one into its own base first."
        )
    return adapter


@contextmanager
def _of_base(adapter: PublishedAdapter) -> Iterator[None]:
    """Say of a base that cannot be had whose it is."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"The adapter {adapter.place!r} has the base {adapter.base[0]!r}, which cannot be had; fetch it, or "
            f"correct base_model_name_or_path in its adapter_config.json ({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def place_of(checkpoint: str) -> str:
    """What to load a checkpoint from: a folder by its absolute path, anything else as a Hub id."""
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.is_dir() else checkpoint


def spec_at(checkpoint: str, revision: str | None = None) -> ImageSpec:
    """The preprocessing of a checkpoint; of an adapter that has none with it, that of its base.

    Raises:
        UserError: there is none, or one that an ImageSpec cannot say.
    """
    load_config(checkpoint, revision)
    adapter = adapter_at(checkpoint, revision)
    if adapter is not None:
        try:
            return spec_of_checkpoint(adapter.place, revision)
        except OSError:
            return spec_at(*adapter.base)
    with explained(checkpoint):
        return spec_of_checkpoint(place_of(checkpoint), revision)


def labels_of_config(config: PretrainedConfig) -> list[str] | None:
    """Class names in output order, or None where the checkpoint was never given names."""
    names = [config.id2label[i] for i in sorted(config.id2label)]
    unnamed = [f"LABEL_{i}" for i in range(len(names))]
    return None if names == unnamed else names


def from_checkpoint(
    checkpoint: str,
    revision: str | None,
    labels: list[str],
    task: Task = "multiclass",
    layers: int | None = None,
    trains: bool = True,
) -> tuple[Any, str]:
    """A pretrained network in float32, in training mode, with a head for the labels.

    The checkpoint's head is kept where it has the same classes in the same order; otherwise the
    head starts anew. Everything else must be in the checkpoint. An adapter is merged into its base.

    Args:
        checkpoint: Hub id or folder.
        revision: of the Hub repository.
        labels: class names in output order.
        task: written into the configuration, where transformers' pipeline reads it.
        layers: how many of its blocks are kept, the first ones; None: all.
        trains: not: a head whose classes have no names is kept too where it has as many, and takes the labels for them.

    Returns:
        the network, and why its head is a new one; empty where it is the checkpoint's.

    Raises:
        UserError: it cannot be had, is no image classifier, lacks weights of its backbone, or has fewer blocks.
    """
    config, adapter = load_config(checkpoint, revision), adapter_at(checkpoint, revision)
    why_new = _why_new_head(config, labels, trains)
    base, of_base = (checkpoint, revision) if adapter is None else adapter.base
    _set_labels(config, labels, task)
    if layers is not None:
        config = _with_layers(config, layers)
    with explained(base), quiet_transformers():
        network, report = AutoModelForImageClassification.from_pretrained(
            place_of(base),
            revision=of_base,
            config=config,
            trust_remote_code=False,
            dtype=torch.float32,  # without it the checkpoint's own dtype is taken
            ignore_mismatched_sizes=True,  # a head for other classes; the rest is checked below
            output_loading_info=True,
        )
    lost = _lost_weights(network, report, base)
    if adapter is not None:
        lost -= merge_adapter(network, adapter, keeps_head=not why_new)
    if lost and not why_new:
        why_new = "it has no weights of a head"
    if why_new:
        _reset_head(network)
    _freeze_mask_token(network)
    return network.train(), why_new  # from_pretrained returns eval mode, and Lightning leaves that as it is


def from_architecture(architecture: dict[str, Any], labels: list[str], task: Task = "multiclass") -> Any:
    """A network with random weights, in training mode.

    Args:
        architecture: `model_type` (vit, deit, swin, ...) and fields of that type's configuration.
        labels: class names in output order.
        task: written into the configuration, where transformers' pipeline reads it.

    Raises:
        UserError: an unknown model type or field.
    """
    config = config_of_architecture(architecture)
    _set_labels(config, labels, task)
    try:
        network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except Exception as error:  # a network's own constructor raises whatever its fields lead to
        raise _no_classifier(architecture, error) from error
    _freeze_mask_token(network)
    return network.train()


def config_of_architecture(architecture: dict[str, Any]) -> PretrainedConfig:
    """The configuration that an `architecture` argument stands for.

    Raises:
        UserError: an unknown model type or field.
    """
    fields = dict(architecture)
    model_type = str(fields.pop("model_type", "vit"))
    try:
        defaults = AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--model.architecture.model_type {model_type!r} is unknown"
            f"{suggestion(model_type, ['vit', 'deit', 'beit', 'swin', 'dinov2', 'convnext', 'resnet'])}."
        ) from error
    unknown = [name for name in fields if not hasattr(defaults, name)]
    if unknown:
        valid = sorted(set(defaults.to_dict()) - set(PretrainedConfig().to_dict()))
        raise UserError(
            f"--model.architecture has no field {unknown[0]!r} for {model_type!r}"
            f"{suggestion(unknown[0], valid)}. Its fields: {listing(valid, 40)}."
        )
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # validators of transformers raise errors of their own
        raise _no_classifier(architecture, error) from error


def input_size(architecture: dict[str, Any]) -> int:
    """The side of the input that an `architecture` argument says, in pixels.

    Raises:
        UserError: it says none.
    """
    size = getattr(config_of_architecture(architecture), "image_size", None)
    if not isinstance(size, int):
        raise UserError(
            f"--model.architecture {architecture} does not say the size of its input; give the preprocessing "
            f"with --model.image (its fields are those of ImageSpec)."
        )
    return size


def without_adapter(network: Any) -> Any:
    """The transformers classifier itself, which an adapter may be wrapped around."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def head_names(network: Any) -> list[str]:
    """Names of the modules on top of the backbone, those with parameters."""
    return [
        name
        for name, module in network.named_children()
        if name != network.base_model_prefix and any(True for _ in module.parameters())
    ]


def heads_of(network: Any) -> dict[str, nn.Module]:
    """The modules on top of the backbone by name, also below an adapter."""
    inside = without_adapter(network)
    return {name: inside.get_submodule(name) for name in head_names(inside)}


def parameters_of_head(network: Any) -> list[str]:
    """Names of the head's parameters, also below an adapter."""
    head = {id(p) for module in heads_of(network).values() for p in module.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in head]


def train_head_only(network: Any, biases: bool = False) -> None:
    """Freeze everything below the head, or everything but the biases."""
    network.requires_grad_(False)
    for head in heads_of(network).values():
        head.requires_grad_(True)
    for name, parameter in network.named_parameters():
        if biases and name.endswith(".bias"):
            parameter.requires_grad_(True)


def train_only(network: Any, names: Collection[str]) -> None:
    """Freeze everything but the parameters of these names."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)


def hold_frozen_statistics(network: nn.Module, hold: bool = True) -> None:
    """Put all batch norms into eval mode, or their averages would drift away from the frozen weights.

    Averages are no parameters: a checkpoint of the trained part alone would not hold them.

    Args:
        network: whose batch norms.
        hold: not: back into training mode.
    """
    for norm in batch_norms(network):
        norm.train(not hold)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers that keep averages of what goes through them."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [module for module in network.modules() if isinstance(module, kinds)]


def drop_gradients_below_head(network: nn.Module) -> None:
    """Make the optimiser's next step one of the head alone: it leaves weights without a gradient as they are."""
    head = set(parameters_of_head(network))
    for name, parameter in network.named_parameters():
        if name not in head:
            parameter.grad = None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the load report of transformers: what it reports is checked, and raised, here."""
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def explained(checkpoint: str) -> Iterator[None]:
    """Turn what transformers raises for a checkpoint that cannot be had into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"The checkpoint {checkpoint!r} could not be loaded ({reason}). Offline: give a local folder "
            "in transformers' format with --model.checkpoint, or fetch it where there is a network with "
            f"`hf download {checkpoint} --local-dir FOLDER`."
        ) from error


def _no_classifier(architecture: dict[str, Any], error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"--model.architecture {architecture} makes no image classifier: {reason}")


def _set_labels(config: PretrainedConfig, labels: list[str], task: Task) -> None:
    # Both maps, and no num_labels: a num_labels that differs would wipe the names.
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "multi_label_classification" if task == "multilabel" else None  # None: one class, softmax


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same with the first `layers` blocks."""
    has = None if hasattr(config, "depths") else getattr(config, "num_hidden_layers", None)
    if has is None:
        raise UserError(
            f"--model.layers keeps the first of equal blocks, which a network of type {config.model_type!r} does not "
            "have (ViT, DeiT, BEiT and DINOv2 do); leave it out."
        )
    if layers > has:
        raise UserError(f"--model.layers is {layers}, but the checkpoint has {has} blocks; give at most {has}.")
    fields = config.to_dict()
    for name in ("stage_names", "out_features", "out_indices"):  # of backbones, which name the last block
        fields.pop(name, None)
    return type(config).from_dict({**fields, "num_hidden_layers": layers})


def _why_new_head(config: PretrainedConfig, labels: list[str], trains: bool) -> str:
    known, count = labels_of_config(config), len(config.id2label)
    if known is not None:
        return "" if known == labels else f"its classes are {listing(known)}"
    return "" if count == len(labels) and not trains else f"its {count} classes have no names"


def _lost_weights(network: Any, report: dict[str, Any], checkpoint: str) -> set[str]:
    """Weights of the head that the checkpoint does not have; of the backbone, none may be lacking."""
    prefix = f"{network.base_model_prefix}."
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    lost = {*report["missing_keys"], *mismatched}
    of_backbone = sorted(key for key in lost if key.startswith(prefix))
    if of_backbone:
        raise UserError(
            f"The checkpoint {checkpoint!r} lacks {len(of_backbone)} weights of its backbone "
            f"({listing(of_backbone, 3)}); they would start at random. Give a checkpoint that is whole."
        )
    return lost


def _freeze_mask_token(network: nn.Module) -> None:
    """DINOv2's and BEiT's is for pretraining alone: no image reaches it, and DDP would wait for its gradient."""
    for name, parameter in network.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)


def _reset_head(network: Any) -> None:
    for head in heads_of(network).values():
        for module in head.modules():
            if isinstance(module, nn.Linear):
                # As transformers initialises new heads; ResNet's configuration does not say how wide.
                nn.init.normal_(module.weight, std=getattr(network.config, "initializer_range", 0.02))
                nn.init.zeros_(module.bias)
