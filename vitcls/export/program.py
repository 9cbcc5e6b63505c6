"""Exports that torch runs without transformers."""

from pathlib import Path

import torch

from vitcls.export.graph import Logits
from vitcls.export.shipped import Shipped
from vitcls.manifest import INPUT

FILE = "model.pt2"


def write_program(shipped: Shipped, folder: Path, takes: str) -> str:
    """The graph as torch.export keeps it, for any number of images.

    Args:
        shipped: the classifier.
        folder: exists.
        takes: as in `Logits`.

    Returns:
        the name of the file.
    """
    logits = Logits(shipped, takes).eval()
    with torch.no_grad():
        any_number = {INPUT: {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(logits, (logits.example(),), dynamic_shapes=any_number)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # of which line of which file on this machine it was made
    torch.export.save(program, folder / FILE)
    return FILE
