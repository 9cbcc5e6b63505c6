"""Exports that OpenVINO runs."""

import logging
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitcls.export.onnx_graph import write_onnx
from vitcls.export.shipped import Shipped
from vitcls.models.exported import openvino

FILE = "model.xml"  # beside it lies model.bin, the weights


def write_openvino(shipped: Shipped, folder: Path, takes: str, calibration: list[NDArray[Any]] | None = None) -> str:
    """The graph, for any number of images, in float32 or, with images to calibrate on, in 8-bit integers.

    Args:
        shipped: the classifier.
        folder: exists.
        takes: as in `Logits`.
        calibration: batches of what the graph takes.

    Returns:
        the name of the file.
    """
    onnx = folder / write_onnx(shipped, folder, takes)
    model = openvino().convert_model(onnx)
    if calibration is not None:
        model = _quantised(model, calibration)
    openvino().save_model(model, folder / FILE, compress_to_fp16=False)
    onnx.unlink()
    return FILE


def _quantised(model: Any, calibration: list[NDArray[Any]]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    images = sum(map(len, calibration))
    return nncf.quantize(model, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER, subset_size=images)
