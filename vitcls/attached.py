"""The figures of a report, handed to those that keep the learning curves."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from vitcls import runs

log = logging.getLogger(__name__)


def attach_report(loggers: Sequence[Logger], report: Path, step: int) -> None:
    """Give the figures and the page of a report to TensorBoard, W&B and MLflow; other loggers get nothing.

    TensorBoard shows the PNGs as `report/<name>`; W&B also, and keeps page and figures as the artifact
    `report-<its run>`; MLflow keeps them as artifacts under `report/`. Of a service that fails, which may be a
    network's fault, a warning is all: the report is in the run folder.

    Args:
        loggers: of the trainer, in its first process.
        report: the folder of the report: index.html, figures/*.png and *.svg.
        step: of the training, beside which the figures are shown.
    """
    files = [file for file in (report / runs.PAGE, *sorted((report / runs.FIGURES).glob("*"))) if file.is_file()]
    images = [file for file in files if file.suffix == ".png"]
    for logger in loggers:
        try:
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, images, step)
            elif isinstance(logger, WandbLogger):
                _to_wandb(logger, report, files, images, step)
            elif isinstance(logger, MLFlowLogger):
                _to_mlflow(logger, report, files)
        except Exception as error:  # noqa: BLE001 what a service raises is its own
            reason = " ".join(str(error).split())
            log.warning("%s did not get the report of %s: %s", type(logger).__name__, report, reason)


def _to_tensorboard(logger: TensorBoardLogger, images: list[Path], step: int) -> None:
    for file in images:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3) uint8
        logger.experiment.add_image(f"report/{file.stem}", pixels, step, dataformats="HWC")
    logger.experiment.flush()


def _to_wandb(logger: WandbLogger, report: Path, files: list[Path], images: list[Path], step: int) -> None:
    import wandb

    for file in images:
        logger.log_image(f"report/{file.stem}", [str(file)], step)
    if files:
        artifact = wandb.Artifact(f"report-{logger.version}", type="report")
        for file in files:
            artifact.add_file(str(file), name=file.relative_to(report).as_posix())
        logger.experiment.log_artifact(artifact)


def _to_mlflow(logger: MLFlowLogger, report: Path, files: list[Path]) -> None:
    for file in files:
        place = Path("report") / file.relative_to(report).parent
        logger.experiment.log_artifact(logger.run_id, str(file), place.as_posix())
