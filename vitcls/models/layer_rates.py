"""The order of a network's layers: learning rates that are lower towards the input, and which blocks are the last."""

import re

from torch import nn

from vitcls.errors import UserError
from vitcls.models.network import parameters_of_head

# Below the backbone: (stage, block) or (block,), then what is inside of it.
_BLOCK = re.compile(
    r"^(?:encoder\.)?(?:stages\.(\d+)\.layers\.(\d+)|layers\.(\d+)\.blocks\.(\d+)|layers?\.(\d+))\.(?!blocks\.)"
)
_STAGE = re.compile(r"^(?:encoder\.)?(?:stages|layers)\.(\d+)\.(downsampling_layer|downsample)\.")
_BOTTOM = re.compile(r"^(?:embeddings|embedder)\.")
_TOP = re.compile(r"^(?:layernorm|norm|pooler|shared_position_bias)\.")  # as BEiT: shared tables at the full rate


def rates_of_layers(
    network: nn.Module, lr: float, head_lr: float | None, layer_decay: float, b_lr_ratio: float = 1.0
) -> dict[str, float]:
    """Peak learning rate of each parameter, by name.

    Of L blocks, the rate of block i (from 0) is lr * layer_decay**(L - i), that of the embeddings
    lr * layer_decay**(L + 1), and that of what follows the last block lr: BEiT's fine-tuning (Bao et al.
    2021, arXiv:2106.08254, and `optim_factory.py` of its code), after ELECTRA (Clark et al. 2020,
    arXiv:2003.10555). Blocks of stages are counted through; what joins two stages has the rate of the
    block whose stage it is part of, as in SimMIM's Swin and in ConvNeXt's code.

    Args:
        network: a transformers image classifier, with or without an adapter.
        lr: of what follows the last block.
        head_lr: of the head; None: lr.
        layer_decay: above 0, at most 1; 1: the same rate in all layers.
        b_lr_ratio: rate of LoRA's matrices B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354).

    Raises:
        UserError: the order of the network's blocks cannot be told from their names.
    """
    rates = dict.fromkeys((name for name, _ in network.named_parameters()), lr)
    if layer_decay != 1:
        positions, depth = _positions(network, f"--model.layer_decay {layer_decay:g}")
        rates |= {name: lr * layer_decay ** (depth - position) for name, position in positions.items()}
    rates |= {name: lr * b_lr_ratio for name in rates if ".lora_B." in name}
    if head_lr is not None:
        rates |= dict.fromkeys(parameters_of_head(network), head_lr)
    return rates


def last_blocks_of(network: nn.Module, count: int) -> list[str]:
    """Names of the parameters of the last blocks, of what follows them, and of the head.

    Args:
        network: a transformers image classifier.
        count: of the blocks.

    Raises:
        UserError: there are not so many, or their order cannot be told from their names.
    """
    positions, depth = _positions(network, f"--model.last_blocks {count}")
    if count > depth:
        raise UserError(f"--model.last_blocks is {count}, but the network has {depth} blocks.")
    return [name for name, _ in network.named_parameters() if positions.get(name, depth) >= depth - count]


def _positions(network: nn.Module, option: str) -> tuple[dict[str, int], int]:
    """Position of each parameter of the backbone (see `_position`), and L."""
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    names = [name for name, _ in network.named_parameters() if name.startswith(prefix)]
    inner = {name: name.removeprefix(prefix) for name in names}
    blocks = sorted({block for block in map(_block_of, inner.values()) if block is not None})
    positions = {}
    for name, below in inner.items():
        position = _position(below, blocks)
        if position is None or not blocks:
            raise UserError(
                f"{option} needs blocks in order, which {type(network).__name__} does not tell by its names (such as "
                f"{name!r}); it does for ViT, DeiT, BEiT, DINOv2, Swin, ConvNeXt, ResNet. Leave it out."
            )
        positions[name] = position
    return positions, len(blocks)


def _position(name: str, blocks: list[tuple[int, ...]]) -> int | None:
    """-1 for the embeddings, 0..L-1 for the blocks, L for what follows; None for what is none of these."""
    if _BOTTOM.match(name) or name == "mask_token":
        return -1
    block = _block_of(name)
    if block is not None:
        return blocks.index(block)
    if between := _STAGE.match(name):
        of_stage = [i for i, b in enumerate(blocks) if b[0] == int(between[1])]
        # ConvNeXt's comes before the blocks of its stage, Swin's after them.
        return (of_stage[0] if between[2] == "downsampling_layer" else of_stage[-1]) if of_stage else None
    return len(blocks) if _TOP.match(name) else None


def _block_of(name: str) -> tuple[int, ...] | None:
    """(stage, block) or (block,) that a parameter belongs to, if any."""
    if _STAGE.match(name):
        return None
    found = _BLOCK.match(name)
    return tuple(int(number) for number in found.groups() if number is not None) if found else None
