"""A run folder or a checkpoint, answering with PyTorch."""

import threading
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitcls.checkpoints import open_checkpoint
from vitcls.models.attribution import attributed, has_attention
from vitcls.models.classifier import ViTClassifier
from vitcls.models.tasks import probabilities_of, thresholds_of
from vitcls.serve.engine import Attribution

Precision = Literal["float32", "bfloat16"]


class TorchEngine:
    """The network of a checkpoint on the CPU; an `Engine`.

    Args:
        path: run folder or .ckpt file.
        precision: of the forward pass; bfloat16 is autocast's, as `--trainer.precision bf16-mixed`.
        threads: of the forward pass.

    Raises:
        UserError: there is no checkpoint, or one that cannot be read.
    """

    def __init__(self, path: str, precision: Precision, threads: int) -> None:
        checkpoint, _ = open_checkpoint(path, "serve")
        model = ViTClassifier.load_from_checkpoint(checkpoint.file, map_location="cpu", weights_only=True)
        model.configure_model()
        self._model = model.eval()
        self._precision = precision
        self._threads = threads
        self._local = threading.local()
        self.name = (checkpoint.run or checkpoint.file).resolve().name
        self.labels: list[str] = list(model.hparams["labels"])
        self.task: str = model.task
        self.thresholds: NDArray[np.float64] = thresholds_of(self.labels, model.thresholds).numpy()
        self.attributed: Attribution | None = self._attributed if has_attention(model) else None

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 -> (3, S, S) uint8."""
        self._use_threads(1)  # several images are prepared at once
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return self._model.image_spec.eval_transform(image).numpy()

    def probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, 3, S, S) uint8 -> (B, K) float32."""
        self._use_threads(self._threads)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bfloat16"):
            logits = self._model.logits(self._model.image_spec.normalise(torch.from_numpy(batch)))
        return probabilities_of(self._model.task, logits / self._model.temperature).numpy()

    def _attributed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self._use_threads(self._threads)
        return attributed(self._model, pixels)

    def _use_threads(self, number: int) -> None:
        """Set torch's threads of this thread, once: each has a number of its own."""
        if not getattr(self._local, "is_set", False):
            torch.set_num_threads(number)
            self._local.is_set = True
