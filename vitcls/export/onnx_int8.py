"""The ONNX graph with its products of matrices in 8-bit integers."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcls.export.onnx_graph import FILE
from vitcls.inference import send_no_reports
from vitcls.manifest import INPUT
from vitcls.models.exported import onnx_runtime

# Convolutions stay in float32: there is one, which cuts the image into patches, and it is fast.
OPERATORS = ["MatMul", "Gemm"]


@dataclass(frozen=True)
class Quantised:
    """How the integers were made.

    Attributes:
        chosen: `dynamic`: the range of what comes into a layer is found for each batch; `static`: it was measured on
            images that were trained on.
        differences: of each way, the mean difference of a logit from the float32 graph, on other such images.
    """

    chosen: str
    differences: dict[str, float]


def quantise(folder: Path, calibration: list[NDArray[Any]]) -> Quantised:
    """Put integers in the place of the float32 graph, in the way that changes the logits least.

    Weights have a range for each output channel: for a whole matrix one alone, the logits of DeiT-Tiny change by a
    fifth more.

    Args:
        folder: with the graph.
        calibration: batches of what the graph takes, at least two: the first half measures the ranges, the other half
            decides between the two ways.
    """
    send_no_reports()
    graph = folder / FILE
    measured_on, judged_on = calibration[: len(calibration) // 2], calibration[len(calibration) // 2 :]
    with _bare(graph) as bare:
        ways: dict[str, Path] = {way: folder / f".{way}.onnx" for way in ("dynamic", "static")}
        with _quiet():
            _dynamic(bare, ways["dynamic"])
            _static(bare, ways["static"], measured_on)
    exact = _answers(graph, judged_on)
    differences = {way: float(np.abs(_answers(file, judged_on) - exact).mean()) for way, file in ways.items()}
    chosen = min(ways, key=lambda way: differences[way])
    ways.pop(chosen).replace(graph)
    for other in ways.values():
        other.unlink()
    return Quantised(chosen, differences)


def _dynamic(graph: Path, output: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, output, OPERATORS, per_channel=True, weight_type=QuantType.QInt8)


def _static(graph: Path, output: Path, batches: list[NDArray[Any]]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # Percentile: ranges by the very largest values change the logits of DeiT-Tiny by a third more.
    quantize_static(
        graph,
        output,
        _reader(batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
    )


def _reader(batches: list[NDArray[Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """onnxruntime asks for the next batch until there is none."""

        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextmanager
def _bare(graph: Path) -> Iterator[Path]:
    """The graph without the shapes that were inferred for it, which onnxruntime's quantiser contradicts."""
    import onnx

    model = onnx.load(graph)
    del model.graph.value_info[:]
    bare = graph.with_name(".bare.onnx")
    onnx.save(model, bare)
    try:
        yield bare
    finally:
        bare.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice to preprocess the graph, which fails on this one, and without notes on the calibration."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _answers(graph: Path, batches: list[NDArray[Any]]) -> NDArray[np.float32]:
    run: Callable[[NDArray[Any]], NDArray[np.float32]] = onnx_runtime(graph)
    return np.concatenate([run(batch) for batch in batches])
