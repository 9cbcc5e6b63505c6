"""What a run writes about itself: at its start, at its end, after a test."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from vitcls import runs
from vitcls.checkpoints import RECORD, Checkpoint, read_checkpoint
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.splits import Split
from vitcls.data.streamed import StreamedSplit
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder

log = logging.getLogger(__name__)

_OF_READING = ("step", "source", "images", "fingerprint", "reads", "reads_of")  # of a test; the rest are its figures
IMAGES_COMPARED = 4  # validation images on which a reloaded model must give the same logits


def write_start(run: Path, config: str, splits: Mapping[str, Split | StreamedSplit], data: Mapping[str, Any]) -> None:
    """config.yaml, complete, and splits.json: which rows train and which validate.

    Args:
        run: the folder.
        config: YAML text.
        splits: by role.
        data: the datamodule's arguments, of which the seed of the splits is kept.
    """
    record = {"split_seed": data["split_seed"], **{role: split.record() for role, split in splits.items()}}
    runs.write_anew(run / runs.CONFIG, config)
    runs.write_anew(run / runs.SPLITS, json.dumps(record) + "\n")


def check_same_data(run: Path, splits: Mapping[str, Split | StreamedSplit]) -> None:
    """Refuse to validate a run on rows that it was trained on.

    The share of the training rows that validates is chosen anew from the data; where images were
    added or removed since, it would hold other rows.

    Raises:
        UserError: the data or its split is not that of the run.
    """
    trained = runs.read_splits(run).get("train", {"fingerprint": "", "rows": []})
    for role in ("validation", "train"):
        recorded = runs.read_splits(run).get(role)
        if role not in splits or recorded is None:
            continue
        split = splits[role]
        leaks = role == "validation" and isinstance(split, Split) and split.overlaps(trained)
        if split.fingerprint != recorded["fingerprint"] or leaks:
            raise UserError(
                f"The {role} data ({split.name!r}) is not that of the run {run}: images, classes or the share have "
                f"changed, and rows that were trained on would validate ({runs.SPLITS} tells which were which). Give "
                "the data as it was, name other data (--data.validation_dir, --data.dataset), or start a new run."
            )


def restore_history(loggers: list[Logger], run: Path, steps: int, unlogged: Mapping[str, float]) -> None:
    """Carry the metrics.csv of a resumed run on: Lightning's CSVLogger would start it anew.

    Args:
        loggers: of the trainer.
        run: the folder.
        steps: that the checkpoint has had; rows of later ones are of a training that was lost.
        unlogged: the row of the checkpoint's epoch, if it ended there; a training that was killed has not logged it.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger) and Path(logger.log_dir) == run:
            aside = _aside(run)
            rows = runs.read_history(aside)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                _ = logger.experiment  # would remove the file
            for row in rows:
                step = int(row.pop("step"))
                if step >= steps:
                    continue
                logger.log_metrics({k: _number(v) for k, v in row.items() if v}, step)
            if unlogged and not any(row.get("train/loss") and row["epoch"] == str(unlogged["epoch"]) for row in rows):
                logger.log_metrics(dict(unlogged), steps - 1)
            logger.save()
            aside.unlink(missing_ok=True)


def write_end(run: Path, datamodule: ImageDataModule) -> ViTClassifier | None:
    """`model/` from the best weights, reloaded and compared, and the validation figures.

    Returns:
        the model with these weights, on the CPU; None where no checkpoint was kept.

    Raises:
        UserError: the checkpoint gives logits that are not finite.
        RuntimeError: the folder gives other logits than the checkpoint.
    """
    kept = _best_or_last(run)
    if kept is None:
        log.warning("no checkpoint was written (trainer.enable_checkpointing), so there is no %s/ folder", runs.MODEL)
        return None
    model = ViTClassifier.load_from_checkpoint(kept.file, map_location="cpu", weights_only=True)
    pixels = datamodule.example_pixels(IMAGES_COMPARED)
    _check_finite(model, kept.file, pixels)
    write_model_folder(model, run / runs.MODEL)
    difference = reload_difference(model, run / runs.MODEL, pixels)
    if not difference <= TOLERANCE:  # also true of NaN
        raise RuntimeError(
            f"{run / runs.MODEL} gives other logits than {kept.file}: they differ by {difference:.3g}, more than "
            f"{TOLERANCE}. The checkpoint is whole; the folder is not to be used."
        )
    content = read_checkpoint(kept)
    of_labels = content[RECORD].get("of_labels", {})
    if "threshold" in of_labels:
        runs.write_thresholds(run, of_labels["threshold"])
    figures = {k: v for k, v in content[RECORD]["metrics"].items() if k.startswith("val/")}
    _mark_stale_test(run, content["global_step"])
    runs.write_metrics(
        run,
        "validation",
        {
            "checkpoint": kept.file.name,
            "epoch": content["epoch"],
            "step": content["global_step"],
            **figures,
            **_f1_of_labels("val", of_labels),
        },
    )
    told = ", ".join(f"{k} {v:.4f}" for k, v in figures.items()) or "not validated"
    log.info("%s is of epoch %d: %s", kept.file.name, content["epoch"], told)
    return model


@torch.inference_mode()
def _check_finite(model: ViTClassifier, file: Path, pixels: Tensor) -> None:
    """Refuse weights that a training's last step has spoilt, after which no loss was looked at."""
    if not model.eval()(pixels).isfinite().all():
        raise UserError(
            f"The training diverged: of validation images {file} makes logits that are NaN or infinite, so no "
            f"{runs.MODEL}/ is written. Lower --model.lr, lengthen the warm-up or clip gradients "
            "(--trainer.gradient_clip_val 1.0), and start a new run."
        )


def is_finished(run: Path) -> bool:
    """Whether `write_end` has come to its end since the kept checkpoint was written."""
    kept = _best_or_last(run)
    written = runs.read_metrics(run).get("validation", {})
    return (
        kept is not None
        and (run / runs.MODEL).is_dir()
        and written.get("checkpoint") == kept.file.name
        and written.get("step") == read_checkpoint(kept)["global_step"]
    )


def write_test(
    checkpoint: Checkpoint,
    split: Split,
    metrics: Mapping[str, Tensor],
    of_labels: Mapping[str, Mapping[str, float]],
) -> bool:
    """The test figures, what they were read on, and how often it was read.

    Args:
        checkpoint: that was tested.
        split: the test rows.
        metrics: the trainer's figures.
        of_labels: figures of each label by name; empty for multiclass.

    Returns:
        whether they were kept: rows that were trained on are no test.
    """
    assert checkpoint.run is not None
    trained = runs.read_splits(checkpoint.run).get("train")
    if split.trained_on or (trained is not None and split.overlaps(trained)):
        log.warning("these rows were trained on, so their figures are no test and are not kept in %s", runs.METRICS)
        return False
    validated = runs.read_splits(checkpoint.run).get("validation")
    chose = validated is not None and split.overlaps(validated)
    if chose:
        log.warning("these rows chose the weights, as validation data, so their figures are somewhat too good")
    times = _counted(checkpoint.run, split)
    reads = times[split.fingerprint]
    figures = {
        "checkpoint": checkpoint.file.name,
        "step": read_checkpoint(checkpoint)["global_step"],
        "source": split.name,
        "images": len(split),
        "fingerprint": split.fingerprint,
        "reads": reads,
        "reads_of": times,
        "chose_the_weights": chose,
        **{k: float(v) for k, v in metrics.items() if k.startswith("test/")},
        **_f1_of_labels("test", of_labels),
    }
    runs.write_metrics(checkpoint.run, "test", figures)
    return True


def count_reading(run: Path, split: Split) -> None:
    """Count a reading of a test set by a network that was exported of a run; its figures are not the run's.

    Args:
        run: the folder.
        split: the test rows.
    """
    times, test = _counted(run, split), runs.read_metrics(run).get("test", {})
    if test.get("fingerprint") == split.fingerprint:
        test["reads"] = times[split.fingerprint]
    runs.write_metrics(run, "test", {**test, "reads_of": times})


def _counted(run: Path, split: Split) -> dict[str, int]:
    """How often each test set was read for a run, by fingerprint, with this reading."""
    times = dict(runs.read_metrics(run).get("test", {}).get("reads_of", {}))
    times[split.fingerprint] = times.get(split.fingerprint, 0) + 1
    if times[split.fingerprint] > 1:
        told = "this test set has now been read %d times for this run; do not choose by it"
        log.warning(told, times[split.fingerprint])
    return times


def _f1_of_labels(stage: str, of_labels: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {f"{stage}/f1_of_labels": dict(of_labels["f1"])} if "f1" in of_labels else {}


def _mark_stale_test(run: Path, step: int) -> None:
    """Test figures of weights that are no longer there are dropped; how often the set was read stays."""
    test = runs.read_metrics(run).get("test")
    if test is not None and test.get("step", step) != step:  # none, where only an export of the run was tested
        runs.write_metrics(run, "test", {k: test[k] for k in _OF_READING if k in test})


def _best_or_last(run: Path) -> Checkpoint | None:
    if (run / runs.BEST).is_file():
        return Checkpoint(run / runs.BEST, run)
    if not (run / runs.LAST).is_file():
        return None
    log.warning("there is no %s (no epoch was validated): %s takes its place", runs.BEST, runs.LAST)
    return Checkpoint(run / runs.LAST, run)


def _aside(run: Path) -> Path:
    """Where the curves of before are while they are written anew; also after a kill meanwhile."""
    aside = run / f".{runs.HISTORY}{runs.PART}"
    if (run / runs.HISTORY).is_file() and not aside.exists():
        (run / runs.HISTORY).rename(aside)
    return aside


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)
