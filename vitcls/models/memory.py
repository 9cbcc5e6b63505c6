"""Less memory and more speed for the same network: recomputed activations, a base in bfloat16, compilation."""

import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from vitcls.errors import UserError, check_range, listing
from vitcls.models.adapters import LoRA
from vitcls.models.network import heads_of, without_adapter

_COMPILERS = ("g++", "clang++", "cl")
# Of their adapters peft casts what goes in to float32 and what comes out back; the others mix the two.
LOW_BASE_METHODS = ("lora", "rslora", "dora")


def check_memory(gradient_checkpointing: bool, base_precision: str, train: str, adapter: LoRA | None) -> None:
    """Refuse what saves nothing, or cannot be.

    Args:
        gradient_checkpointing: whether activations are to be recomputed.
        base_precision: of the frozen weights.
        train: what is trained without an adapter.
        adapter: if there is one.

    Raises:
        UserError: names the options that exclude each other.
    """
    if gradient_checkpointing and train == "head":
        raise UserError(
            "--model.gradient_checkpointing true saves nothing with --model.train head, which keeps no activations of "
            "the layers below; leave it out."
        )
    check_range(
        "model.base_precision", base_precision, base_precision in ("float32", "bfloat16"), "float32 or bfloat16"
    )
    if base_precision == "float32" or train == "head":
        return
    if adapter is None or adapter.method not in LOW_BASE_METHODS:
        raise UserError(
            "--model.base_precision bfloat16 is for weights that are frozen as a whole: with --model.adapter.method "
            f"{listing(LOW_BASE_METHODS)}, or --model.train head; set it to float32."
        )
    if adapter.bias != "none":
        raise UserError(
            f"--model.adapter.bias {adapter.bias} trains biases of layers whose weights --model.base_precision "
            "bfloat16 lowers; set one of the two back (none, float32)."
        )


def check_precision(precision: str) -> None:
    """Refuse a trainer that puts what trains, and the images, into another precision than float32.

    Args:
        precision: of the trainer.

    Raises:
        UserError: says what to leave out.
    """
    if precision.endswith("true") and precision != "32-true":
        raise UserError(
            f"--trainer.precision {precision} is of all weights, and --model.base_precision bfloat16 of those that are "
            "frozen; leave one of the two out (--trainer.precision bf16-mixed or 32-true go with it)."
        )


def recompute_activations(network: Any) -> None:
    """Keep only what goes into each block, and compute the rest again in the backward pass.

    Chen et al. 2016 (arXiv:1604.06174). Not by re-entrant autograd, which gives adapters of a frozen network no
    gradients at all. The blocks do it in training mode only.

    Args:
        network: a transformers image classifier, with or without an adapter.

    Raises:
        UserError: its family cannot.
    """
    inside = without_adapter(network)
    if not inside.supports_gradient_checkpointing:
        raise UserError(
            f"--model.gradient_checkpointing true is not for a network of type {inside.config.model_type!r} "
            "(transformers has it for ViT, DeiT, BEiT, Swin and DINOv2); leave it out, and have smaller batches "
            "(--data.batch_size) with --trainer.accumulate_grad_batches instead."
        )
    # transformers 5.23 renamed it, and warns of the old name.
    enable = getattr(inside, "activation_checkpointing_enable", None) or inside.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def lower_base(network: Any) -> None:
    """Put the frozen weights into bfloat16; what trains stays in float32.

    The head is a float32 layer behind a bfloat16 backbone: what goes into it is cast.
    """
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    network.register_forward_pre_hook(_pixels_in_bfloat16, with_kwargs=True)
    for head in heads_of(network).values():
        head.register_forward_pre_hook(_in_float32)


def compile_network(network: nn.Module, backend: bool | str) -> None:
    """Have torch.compile translate the network when it is first called, in place: its weights keep their names.

    Shapes are static: each size of batch is translated once, so an epoch's last, short batch costs one more
    translation and not one in every epoch.

    Args:
        network: to compile.
        backend: of torch.compile by name; true: inductor, the default.

    Raises:
        UserError: there is no such backend, or no C++ compiler for it.
    """
    name = "inductor" if backend is True else str(backend)
    known = torch.compiler.list_backends(exclude_tags=())
    check_range("model.compile", repr(backend), name in known, f"true, false or one of {listing(known)}")
    if name == "inductor" and not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        raise UserError(
            "--model.compile true needs a C++ compiler, and none of "
            f"{', '.join(_COMPILERS)} is found; install one (such as the package g++), or leave the option out."
        )
    network.compile(backend=name, dynamic=False)


def _pixels_in_bfloat16(_: nn.Module, args: Any, words: dict[str, Any]) -> Any:
    return args, {**words, "pixel_values": words["pixel_values"].to(torch.bfloat16)}


def _in_float32(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in args)
