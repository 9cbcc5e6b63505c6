"""What a run can be exported to."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from vitcls.errors import UserError
from vitcls.export.onnx_graph import write_onnx
from vitcls.export.onnx_int8 import quantise
from vitcls.export.openvino_ir import write_openvino
from vitcls.export.program import write_program
from vitcls.export.shipped import Shipped
from vitcls.export.weights import write_adapter, write_huggingface
from vitcls.models.exported import as_bytes


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        shipped: the classifier.
        folder: to write into; exists.
        takes: what a graph takes, `float32` or `uint8`.
        calibration: gives batches (B, 3, S, S) float32, normalised, of images that were trained on; two at least.
    """

    shipped: Shipped
    folder: Path
    takes: str
    calibration: Callable[[], list[Tensor]]


class Format(NamedTuple):
    """One of the formats.

    Attributes:
        meaning: for --help.
        write: writes the files; the name of the network's own, and what else is to be noted.
        is_exact: whether it is float32, and must give the same logits.
        needs: packages, and the extra of vitcls that brings them.
    """

    meaning: str
    write: Callable[[Job], tuple[str, dict[str, Any]]]
    is_exact: bool = True
    needs: tuple[str, ...] = ()
    extra: str = ""


def check_installed(name: str) -> None:
    """Refuse a format whose packages are not there.

    Raises:
        UserError: names the extra that brings them.
    """
    missing = [package for package in FORMATS[name].needs if find_spec(package) is None]
    if missing:
        raise UserError(f"--to {name} needs {missing[0]}: pip install 'vitcls[{FORMATS[name].extra}]'.")


def _huggingface(job: Job) -> tuple[str, dict[str, Any]]:
    return write_huggingface(job.shipped, job.folder), {}


def _adapter(job: Job) -> tuple[str, dict[str, Any]]:
    return write_adapter(job.shipped, job.folder), {}


def _onnx(job: Job) -> tuple[str, dict[str, Any]]:
    return write_onnx(job.shipped, job.folder, job.takes), {}


def _onnx_int8(job: Job) -> tuple[str, dict[str, Any]]:
    file = write_onnx(job.shipped, job.folder, job.takes)
    return file, {"quantised": asdict(quantise(job.folder, _taken(job)))}


def _torch(job: Job) -> tuple[str, dict[str, Any]]:
    return write_program(job.shipped, job.folder, job.takes), {}


def _openvino(job: Job) -> tuple[str, dict[str, Any]]:
    return write_openvino(job.shipped, job.folder, job.takes), {}


def _openvino_int8(job: Job) -> tuple[str, dict[str, Any]]:
    return write_openvino(job.shipped, job.folder, job.takes, _taken(job)), {}


def _taken(job: Job) -> list[NDArray[Any]]:
    """Images to calibrate with, as the graph takes them."""
    spec = job.shipped.model.image_spec
    batches = [as_bytes(batch, spec) if job.takes == "uint8" else batch for batch in job.calibration()]
    return [batch.numpy() for batch in batches]


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[str, Format] = {
    "huggingface": Format("whole weights, for transformers and its pipeline", _huggingface),
    "adapter": Format("the adapter and the head, for peft", _adapter),
    "onnx": Format("a graph in float32, for onnxruntime and others", _onnx, needs=_ONNX, extra="onnx"),
    "onnx-int8": Format("the same in 8-bit integers", _onnx_int8, is_exact=False, needs=_ONNX, extra="onnx"),
    "torch": Format("a graph in float32, for torch.export.load", _torch),
    "openvino": Format("a graph in float32, for OpenVINO", _openvino, True, (*_ONNX, "openvino"), "openvino"),
    "openvino-int8": Format(
        "the same in 8-bit integers", _openvino_int8, False, (*_ONNX, "openvino", "nncf"), "openvino"
    ),
}
