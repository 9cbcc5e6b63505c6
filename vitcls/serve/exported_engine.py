"""An exported folder, answering without PyTorch."""

from pathlib import Path

from vitcls.inference import Predictor
from vitcls.serve.engine import Attribution


class ExportedEngine(Predictor):
    """An exported network; an `Engine` that explains nothing, since no gradients are exported.

    Args:
        folder: with a manifest.
        threads: of the network.

    Raises:
        UserError: it cannot be read, or is not what was exported.
    """

    attributed: Attribution | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        self.name = folder.resolve().name
