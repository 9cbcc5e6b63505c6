"""What a run writes about itself: at its start, at its end, after a test."""

import csv
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from vitcls import runs
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.splits import Split
from vitcls.models.classifier import RECORD, ViTClassifier
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder

log = logging.getLogger(__name__)

IMAGES_COMPARED = 4  # validation images on which a reloaded model must give the same logits


def write_start(run: Path, config: str, splits: Mapping[str, Split], data: Mapping[str, Any]) -> None:
    """config.yaml, complete, and splits.json: which rows train and which validate.

    Args:
        run: the folder.
        config: YAML text.
        splits: by role.
        data: the datamodule's arguments, of which the seed of the splits is kept.
    """
    runs.keep_aside(run / runs.CONFIG)
    (run / runs.CONFIG).write_text(config, encoding="utf-8")
    record = {"split_seed": data["split_seed"], **{role: split.record() for role, split in splits.items()}}
    (run / runs.SPLITS).write_text(json.dumps(record) + "\n", encoding="utf-8")


def restore_history(loggers: list[Logger], run: Path) -> None:
    """Carry the metrics.csv of a resumed run on: Lightning's CSVLogger would start it anew."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and Path(logger.log_dir) == run:
            rows = _history(run / runs.HISTORY)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                _ = logger.experiment  # removes the file, whose rows are in memory
            for row in rows:
                step = int(row.pop("step"))
                logger.log_metrics({k: _number(v) for k, v in row.items() if v}, step)
            logger.save()


def write_end(run: Path, datamodule: ImageDataModule) -> None:
    """`model/` from the best weights, reloaded and compared, and the validation figures.

    Raises:
        RuntimeError: the folder gives other logits than the checkpoint.
    """
    kept = _best_or_last(run)
    if kept is None:
        log.warning("no checkpoint was written (trainer.enable_checkpointing), so there is no %s/ folder", runs.MODEL)
        return
    model = ViTClassifier.load_from_checkpoint(kept.file, map_location="cpu", weights_only=True)
    write_model_folder(model, run / runs.MODEL)
    difference = reload_difference(model, run / runs.MODEL, datamodule.example_pixels(IMAGES_COMPARED))
    if not difference <= TOLERANCE:  # also true of NaN
        raise RuntimeError(
            f"{run / runs.MODEL} gives other logits than {kept.file}: they differ by {difference:.3g}, more than "
            f"{TOLERANCE}. The checkpoint is whole; the folder is not to be used."
        )
    content = runs.read_checkpoint(kept)
    figures = {k: v for k, v in content[RECORD]["metrics"].items() if k.startswith("val/")}
    runs.write_metrics(
        run,
        "validation",
        {"checkpoint": kept.file.name, "epoch": content["epoch"], "step": content["global_step"], **figures},
    )
    log.info(
        "%s is of epoch %d: %s", kept.file.name, content["epoch"], ", ".join(f"{k} {v:.4f}" for k, v in figures.items())
    )


def write_test(checkpoint: runs.Checkpoint, split: Split, metrics: Mapping[str, Tensor]) -> None:
    """The test figures, what they were read on, and how often it was read."""
    assert checkpoint.run is not None
    before = runs.read_metrics(checkpoint.run).get("test", {})
    reads = before.get("reads", 0) + 1 if before.get("fingerprint") == split.fingerprint else 1
    if reads > 1:
        log.warning("this test set has now been read %d times for this run; do not choose by it", reads)
    figures = {
        "checkpoint": checkpoint.file.name,
        "source": split.name,
        "images": len(split),
        "fingerprint": split.fingerprint,
        "reads": reads,
        **{k: float(v) for k, v in metrics.items() if k.startswith("test/")},
    }
    runs.write_metrics(checkpoint.run, "test", figures)


def _best_or_last(run: Path) -> runs.Checkpoint | None:
    if (run / runs.BEST).is_file():
        return runs.Checkpoint(run / runs.BEST, run)
    if not (run / runs.LAST).is_file():
        return None
    log.warning("no epoch was validated, so %s takes the place of %s", runs.LAST, runs.BEST)
    return runs.Checkpoint(run / runs.LAST, run)


def _history(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)
