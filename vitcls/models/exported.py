"""An exported network, run by its own runtime where a transformers network would stand."""

import hashlib
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from vitcls.errors import UserError, listing
from vitcls.inference import Run, one_by_one, onnx_network
from vitcls.input_spec import InputSpec
from vitcls.manifest import OUTPUT, Manifest, check_files, read_manifest


class ExportedNetwork(nn.Module):
    """The graph of an exported folder as a network: normalised images -> logits. It is not trained.

    Args:
        folder: from `python -m vitcls export`.
        trusts: whether a format may be loaded whose loader executes what its file says.

    Raises:
        UserError: a file that is missing, was changed or cannot be loaded, a format that is no graph, or one that is
            not trusted.
    """

    digest: Tensor

    def __init__(self, folder: Path, trusts: bool = False) -> None:
        super().__init__()
        manifest = read_manifest(folder)
        if manifest.format not in RUNTIMES:
            raise UserError(
                f"--model.exported {str(folder)!r} was exported as {manifest.format!r}, and it takes "
                f"{listing(RUNTIMES)}; give the folder with --ckpt_path."
            )
        check_files(folder, manifest)
        if manifest.format in EXECUTING and not trusts:
            raise UserError(
                f"{folder / manifest.file} is read by torch.export.load, which executes what a file says; if you made "
                "it, or trust who did, say --model.trust_exported true."
            )
        self._run = _loaded(folder / manifest.file, manifest)
        self._takes, self._spec = manifest.takes, manifest.spec
        # Tells one export from another where the weights do of other networks.
        self.register_buffer("digest", torch.frombuffer(bytearray(_digest(manifest)), dtype=torch.uint8))

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Normalised images (B, 3, S, S) float -> an output with logits (B, K) float32."""
        images = pixel_values.detach().float().cpu()
        taken = as_bytes(images, self._spec) if self._takes == "uint8" else images
        logits = torch.from_numpy(self._run(taken.numpy()))
        return ImageClassifierOutput(logits=logits.to(pixel_values.device))


def _loaded(file: Path, manifest: Manifest) -> Run:
    try:
        run = RUNTIMES[manifest.format](file)
    except UserError:
        raise
    except Exception as error:  # the runtimes raise many kinds, also for what another version of them wrote
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        made_with = ", ".join(f"{library} {number}" for library, number in manifest.versions.items())
        raise UserError(f"{file} cannot be loaded ({cause}); it was made with {made_with}. Export again.") from error
    return one_by_one(run) if manifest.alone else run


def _digest(manifest: Manifest) -> bytes:
    """Of the network's own file and of those beside it of its name: OpenVINO's holds no weights."""
    network = Path(manifest.file).stem
    parts = [digest for name, digest in sorted(manifest.files.items()) if Path(name).stem == network]
    return hashlib.sha256("".join(parts).encode()).digest()


def as_bytes(pixel_values: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images (B, 3, S, S) float32 -> the uint8 that they were made of."""
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixel_values * std + mean).round().to(torch.uint8)


def torch_runtime(file: Path) -> Run:
    """Of a .pt2 file, whose loader unpickles parts of it."""
    module = torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        return module(torch.from_numpy(images)).numpy()

    return run


def openvino_runtime(file: Path) -> Run:
    """Of an .xml file with its .bin, in the precision that it has.

    Raises:
        UserError: OpenVINO is not installed.
    """
    # On processors that have it, bfloat16 would be taken by default.
    model = openvino().Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: model([images])[OUTPUT]


def openvino() -> ModuleType:
    """The library, which reports its use to its makers when it is imported, except on machines of continuous tests.

    Raises:
        UserError: it is not installed.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        return import_module("openvino")
    except ImportError as error:
        raise UserError("An OpenVINO export needs openvino: pip install 'vitcls[openvino]'.") from error
    finally:
        del os.environ["CI"]
        if before is not None:
            os.environ["CI"] = before


RUNTIMES: dict[str, Callable[[Path], Run]] = {
    "onnx": onnx_network,
    "onnx-int8": onnx_network,
    "torch": torch_runtime,
    "openvino": openvino_runtime,
    "openvino-int8": openvino_runtime,
}
EXECUTING = ("torch",)  # formats whose loader executes what a file says
