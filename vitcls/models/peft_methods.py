"""The adapter methods: what each is for peft, which of the adapter's fields it has, what it can wrap."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
)
from torch import nn

MethodName = Literal[
    "lora",
    "rslora",
    "dora",
    "pissa",
    "olora",
    "adalora",
    "loha",
    "lokr",
    "oft",
    "boft",
    "vera",
    "ia3",
    "ln_tuning",
    "fourierft",
]


@dataclass(frozen=True)
class Method:
    """One way of training little.

    Attributes:
        config: of peft.
        fields: of our adapter, and what peft calls them.
        fixed: fields of peft's that make it this method.
        layers: kinds of layers that it can wrap.
        divides: its block_size must divide the inputs of a layer.
    """

    config: type[PeftConfig]
    fields: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    layers: tuple[type[nn.Module], ...] = (nn.Linear,)
    divides: bool = False


_LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias"}
_ADALORA = {"r": "target_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias"}
_LYCORIS = {"r": "r", "alpha": "alpha"}
_OFT = {"block_size": "oft_block_size", "dropout": "module_dropout", "bias": "bias"}
_BOFT = {"block_size": "boft_block_size", "dropout": "boft_dropout", "bias": "bias"}
_VERA = {"r": "r", "dropout": "vera_dropout", "bias": "bias"}
_WITH_CONV = (nn.Linear, nn.Conv2d)

# Papers, by arXiv number. Which of them wrap Conv2d was tried with peft 0.21: olora, vera and fourierft refuse to;
# oft's merged Conv2d differs from the adapted one (by 0.03 of a logit), and boft's fit few kernels.
METHODS: dict[MethodName, Method] = {
    "lora": Method(LoraConfig, _LORA, layers=_WITH_CONV),  # 2106.09685
    "rslora": Method(LoraConfig, _LORA, {"use_rslora": True}, _WITH_CONV),  # 2312.03732: alpha / sqrt(r)
    "dora": Method(LoraConfig, _LORA, {"use_dora": True}, _WITH_CONV),  # 2402.09353
    # 2404.02948; the exact singular values, since those of `pissa_niter_*` are drawn anew at each load.
    "pissa": Method(LoraConfig, _LORA, {"init_lora_weights": "pissa"}),
    "olora": Method(LoraConfig, _LORA, {"init_lora_weights": "olora"}),  # 2406.01775
    # 2303.10512; the penalty's weight is that of the authors' scripts for MRPC and SST-2 (peft: 0.5). Training sets
    # the steps.
    "adalora": Method(AdaLoraConfig, _ADALORA, {"orth_reg_weight": 0.1, "total_step": 1}),
    "loha": Method(LoHaConfig, _LYCORIS, layers=_WITH_CONV),  # 2108.06098
    "lokr": Method(LoKrConfig, _LYCORIS, layers=_WITH_CONV),  # 2309.14859
    "oft": Method(OFTConfig, _OFT, divides=True),  # 2306.07280
    "boft": Method(BOFTConfig, _BOFT, divides=True),  # 2311.06243
    "vera": Method(VeraConfig, _VERA),  # 2310.11454
    "ia3": Method(IA3Config, layers=_WITH_CONV),  # 2205.05638
    "ln_tuning": Method(LNTuningConfig, layers=(nn.LayerNorm,)),  # 2312.11420
    "fourierft": Method(FourierFTConfig, {"frequencies": "n_frequency", "bias": "bias"}),  # 2405.03003
}
# The second layer of a block's MLP: (IA)^3 scales what goes into it (section 3.3), of other layers what comes out.
_FEEDFORWARD = ("fc2", "pwconv2", "down_proj")


def config_of(name: MethodName, values: dict[str, Any], targets: list[str], head: list[str]) -> PeftConfig:
    """The configuration that peft takes.

    Args:
        name: of the method.
        values: of our adapter's fields; those that are None stay as peft has them.
        targets: names of the layers to adapt.
        head: names of the modules that train and are kept with the adapter.
    """
    method = METHODS[name]
    own: dict[str, Any] = {
        theirs: values[ours] for ours, theirs in method.fields.items() if values[ours] is not None
    } | method.fixed
    if name == "adalora":
        own["init_r"] = ceil(1.5 * values["r"])  # as 12 to 8 by default in peft, and 2 to 1 in the authors' scripts
    if name == "ia3":
        own["feedforward_modules"] = [target for target in targets if target.rsplit(".", 1)[-1] in _FEEDFORWARD]
    return method.config(**own, target_modules=targets, modules_to_save=head)


def can_merge(network: PeftModel) -> bool:
    """Whether `merge_and_unload` works (peft 0.21).

    LoRA's kin refuse grouped Conv2d; the other methods fail on a head of several layers, as ResNet's is, with
    "'Sequential' object has no attribute 'weight'". LN-tuning does neither.
    """
    config = network.peft_config["default"]
    if isinstance(config, LoraConfig):
        wrapped = (getattr(module, "base_layer", None) for module in network.modules())
        return not any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in wrapped)
    heads = [network.get_base_model().get_submodule(name) for name in config.modules_to_save]
    several = any(isinstance(getattr(head, "original_module", head), nn.Sequential) for head in heads)
    return not several or isinstance(config, LNTuningConfig)


def is_split(network: nn.Module) -> bool:
    """Whether the method takes the adapters' first values out of the weights that it adapts."""
    config = network.peft_config["default"] if isinstance(network, PeftModel) else None
    return isinstance(config, LoraConfig) and config.init_lora_weights in ("pissa", "olora")


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what peft says of its own doing."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # boft asks for CUDA where there is none
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension")  # boft computes without it
        warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor to 1")
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups")  # see can_merge
        warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match.*lora_E")  # they do
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # ln_tuning's layers do support it
        yield
