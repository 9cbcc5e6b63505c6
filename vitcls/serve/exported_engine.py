"""An exported folder, answering without PyTorch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcls.inference import Predictor


class ExportedEngine(Predictor):
    """An exported network; an `Engine` that explains nothing, since no gradients are exported.

    Args:
        folder: with a manifest.
        threads: of the network.

    Raises:
        UserError: it cannot be read, or is not what was exported.
    """

    explains = False

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        self.name = folder.resolve().name

    def attributed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Never asked."""
        raise NotImplementedError
