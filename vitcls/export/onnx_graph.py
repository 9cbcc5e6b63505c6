"""Exports that onnxruntime runs."""

import json
from pathlib import Path

import torch

from vitcls.export.graph import Logits
from vitcls.export.shipped import Shipped
from vitcls.manifest import INPUT, OUTPUT

FILE = "model.onnx"


@torch.no_grad()  # with gradients it starts autograd's threads, which no process that is forked survives
def write_onnx(shipped: Shipped, folder: Path, takes: str) -> str:
    """The graph in float32, for any number of images; what a client needs to know is in its metadata.

    Args:
        shipped: the classifier.
        folder: exists.
        takes: as in `Logits`.

    Returns:
        the name of the file.
    """
    logits = Logits(shipped, takes).eval()
    program = torch.onnx.export(
        logits,
        (logits.example(),),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # of which line of which file on this machine it was made
    program.model.metadata_props.update(_facts(shipped, takes))
    program.save(folder / FILE, external_data=False)
    return FILE


def _facts(shipped: Shipped, takes: str) -> dict[str, str]:
    """What makes an image the input, and the output an answer, as JSON."""
    model = shipped.model
    facts = {
        "labels": model.hparams["labels"],
        "task": model.task,
        "image": model.image_spec.record(),
        "takes": takes,
        "temperature": model.temperature,
    }
    return {f"vitcls.{name}": json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}
