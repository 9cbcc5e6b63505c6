"""Answers of an exported classifier, on onnxruntime, numpy and Pillow alone: neither torch nor transformers."""

import math
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcls.data.decode import Pixels, check_shape, decode, decode_opened
from vitcls.decisions import THRESHOLD, UNKNOWN, best_of, probabilities_of
from vitcls.errors import BadImageError, UserError, listing
from vitcls.input_pixels import normalise, prepare
from vitcls.manifest import INPUT, OUTPUT, Manifest, check_files, read_manifest

FORMATS = ("onnx", "onnx-int8")
BATCH_SIZE = 16
# A path, the bytes of a file, a file opened for reading bytes, an image of Pillow's, or (H, W, 3) uint8 RGB, upright.
Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]


class Answer(NamedTuple):
    """What a classifier says of an image.

    Attributes:
        label: the best class, or `unknown`.
        score: probability of the best class, in 0..1.
        top: the best classes and their probabilities, best first.
        labels: multilabel: the classes whose probability reaches their threshold; multiclass: None.
    """

    label: str
    score: float
    top: list[tuple[str, float]]
    labels: list[str] | None


class Predictor:
    """An exported classifier, which prepares images as its training did and answers on the CPU.

    Several threads may use one Predictor.

    Args:
        folder: exported as `onnx` or `onnx-int8`.
        threads: of the network; None: as many as there are cores.
        batch_size: images that are prepared and classified together.

    Attributes:
        labels: K names of the classes, in output order.
        task: `multiclass` or `multilabel`.
        thresholds: (K,) float64, from which probability a class of a multilabel image is there.
        spec: how the network wants its images.

    Raises:
        UserError: no such folder, another format, files that are not those that were exported, or no onnxruntime.
    """

    def __init__(
        self, folder: str | os.PathLike[str], threads: int | None = None, batch_size: int = BATCH_SIZE
    ) -> None:
        _check_at_least_1("threads", threads)
        _check_at_least_1("batch_size", batch_size)
        place = Path(folder).expanduser()
        manifest = read_manifest(place)
        _check_format(place, manifest)
        check_files(place, manifest)
        self.labels = manifest.labels
        self.task = manifest.task
        self.thresholds = np.array([manifest.thresholds.get(label, THRESHOLD) for label in self.labels])
        self.spec = manifest.spec
        self._normalises = manifest.takes == "float32"
        self._batch_size = batch_size
        self._session = onnx_session(place / manifest.file, threads)

    def __call__(self, images: Source | Sequence[Source], top_k: int = 5, abstain: float | None = None) -> list[Answer]:
        """Classify images.

        Args:
            images: one or several.
            top_k: how many of the best classes an answer names; all, where there are fewer.
            abstain: multiclass: the label is `unknown` where the best probability is below this, in 0..1; None: never.

        Returns:
            an answer for each image, in their order.

        Raises:
            BadImageError: an image cannot be read or decoded; the message says which and why.
            UserError: something that is no image, or an argument that does not fit.
        """
        _check_at_least_1("top_k", top_k)
        self._check_abstain(abstain)
        sources = _listed(images)
        answers: list[Answer] = []
        for start in range(0, len(sources), self._batch_size):
            numbers = range(start, min(start + self._batch_size, len(sources)))
            batch = np.stack([self.prepare(_named_pixels(sources, number)) for number in numbers])
            answers += self._answers(self.probabilities(batch), top_k, abstain or 0.0)
        return answers

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop as the evaluation of the training did, to the same bytes: (H, W, 3) RGB -> (3, S, S)."""
        return prepare(self.spec, pixels)

    def probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepared images (B, 3, S, S) -> probabilities (B, K) in 0..1; of multiclass they add up to 1.

        Raises:
            UserError: another shape or dtype.
        """
        self._check_batch(batch)
        values = normalise(self.spec, batch) if self._normalises else batch
        (logits,) = self._session.run([OUTPUT], {INPUT: values})
        return probabilities_of(self.task, logits)

    def _answers(self, probabilities: NDArray[np.float32], top_k: int, abstain: float) -> list[Answer]:
        best = best_of(probabilities, top_k)
        present = probabilities >= self.thresholds
        return [self._answer(*image, abstain) for image in zip(probabilities, best, present, strict=True)]

    def _answer(
        self, probabilities: NDArray[np.float32], best: NDArray[np.int64], present: NDArray[np.bool_], abstain: float
    ) -> Answer:
        top = [(self.labels[i], float(probabilities[i])) for i in best]
        label, score = top[0]
        labels = list(compress(self.labels, present)) if self.task == "multilabel" else None
        return Answer(UNKNOWN if score < abstain else label, score, top, labels)

    def _check_batch(self, batch: NDArray[np.uint8]) -> None:
        wanted = (3, self.spec.size, self.spec.size)
        if batch.dtype != np.uint8 or batch.shape[1:] != wanted:
            raise UserError(
                f"probabilities takes (B, {', '.join(map(str, wanted))}) uint8, not {batch.shape} {batch.dtype}; "
                "`prepare` makes it of the pixels of an image."
            )

    def _check_abstain(self, abstain: float | None) -> None:
        if abstain is None:
            return
        if not (math.isfinite(abstain) and 0 <= abstain <= 1):
            raise UserError(f"abstain is {abstain}; it must be in 0..1.")
        if self.task == "multilabel":
            raise UserError("abstain is for images of one class; this network has a threshold for each of its classes.")
        if UNKNOWN in self.labels:
            raise UserError(
                f"abstain gives the label {UNKNOWN!r}, but the network has a class of that name; leave it out, and "
                "choose by the score."
            )


def _listed(images: Source | Sequence[Source]) -> list[Source]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
        return list(images)
    return [cast(Source, images)]


def _named_pixels(sources: list[Source], number: int) -> Pixels:
    source = sources[number]
    try:
        return _pixels(source)
    except (BadImageError, OSError) as error:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {number + 1} of {len(sources)}"
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadImageError(f"{name}: {cause}") from error


def _pixels(source: Any) -> Pixels:
    if isinstance(source, np.ndarray):
        return _checked(source)
    if isinstance(source, Image.Image):
        return decode_opened(source)
    if isinstance(source, str | os.PathLike):
        return decode(Path(source).expanduser().read_bytes())
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(bytes(source))
    if hasattr(source, "read"):
        return decode(source.read())
    raise UserError(
        "A Predictor takes paths, bytes, opened files, images of Pillow's and arrays (H, W, 3) uint8, not "
        f"{type(source).__name__}."
    )


def _checked(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImageError(f"an array must be (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    check_shape(*pixels.shape[:2])
    return pixels


def _check_at_least_1(argument: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{argument} is {value}; it must be at least 1.")


def _check_format(folder: Path, manifest: Manifest) -> None:
    if manifest.format not in FORMATS:
        raise UserError(
            f"{folder} was exported as {manifest.format!r}; a Predictor takes {listing(FORMATS)}: "
            f"`python -m vitcls export RUN --to {FORMATS[0]}` makes one."
        )


def send_no_reports() -> None:
    """To be called before onnxruntime is imported; a variable ORT_DISABLE_TELEMETRY that is set already stays.

    Its wheels (1.31 also for Linux) keep an id of the machine in files, and report to Microsoft what is run.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def onnx_session(file: Path, threads: int | None = None) -> Any:
    """A network of onnxruntime, ready to run, which itself refuses weights that lie outside the folder.

    Args:
        file: .onnx.
        threads: None: as many as there are cores.

    Raises:
        UserError: onnxruntime is not installed, or cannot load it.
    """
    send_no_reports()
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("An ONNX export needs onnxruntime: pip install 'vitcls[onnx]'.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; the warnings are of how it optimises
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have nothing else in common
        cause = str(error).splitlines()[0]
        raise UserError(f"{file} cannot be loaded by onnxruntime ({cause}); export again.") from error
