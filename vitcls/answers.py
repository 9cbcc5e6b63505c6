"""What a report is made of, kept with a run: the answers to its splits, and pictures of what stands out in them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torchvision.transforms.v2 import functional as tv

from vitcls import runs
from vitcls.callbacks.answers import joined
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.rows import TableImages, names_of_images
from vitcls.data.splits import Split
from vitcls.models.attribution import attributed, has_attention
from vitcls.models.classifier import ViTClassifier
from vitcls.models.tasks import thresholds_of
from vitcls.outputs import Outputs, write_outputs
from vitcls.pictures import write_pictures
from vitcls.report.selection import Selection, select

PICTURE = 144  # pixels of the longer side: a report with some 150 of them stays below 2 MB
QUALITY = 80

Answers = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids (N,), ascending, and logits (N, K)


def keep_after_fit(run: Path, model: ViTClassifier, datamodule: ImageDataModule, trainer: Trainer) -> None:
    """Ask the kept model about the validation images and, for their labels, the training images.

    One process does this alone: no row comes twice, whatever the number of processes.

    Args:
        run: the folder.
        model: with the weights that are kept.
        datamodule: after the fit.
        trainer: whose device and precision are used.
    """
    written = runs.read_metrics(run)["validation"]
    about = {name: written[name] for name in ("checkpoint", "epoch", "step")}
    model.to(trainer.strategy.root_device).eval()
    for role in ("validation", "train"):
        split = datamodule.splits[role]
        if isinstance(split, Split):  # a stream has no rows to come back to
            answers = _asked(model, datamodule, trainer, role)
            keep(run, role, model, split, answers, about)


def keep_after_test(run: Path, model: ViTClassifier, split: Split, answers: Answers) -> None:
    """Keep the answers to the test images.

    Args:
        run: the folder, after the test figures were written.
        model: that was tested.
        split: the test rows.
        answers: from `TestAnswers`.
    """
    written = runs.read_metrics(run)["test"]
    keep(run, "test", model, split, answers, {name: written[name] for name in ("checkpoint", "step", "reads")})


@torch.inference_mode()
def _asked(model: ViTClassifier, datamodule: ImageDataModule, trainer: Trainer, role: str) -> Answers:
    batches, count = datamodule.evaluated(role)
    shown = sys.stderr.isatty()
    told = f"answers to {role} for the report"
    precision = trainer.precision_plugin
    parts = []
    for batch in track(batches, told, count, console=Console(stderr=True), disable=not shown, transient=True):
        if len(batch["ids"]):
            with precision.forward_context():
                logits = model.logits(precision.convert_input(batch["pixel_values"]))
            parts.append((batch["ids"], logits.float().cpu()))
    return joined(parts)


def keep(run: Path, role: str, model: ViTClassifier, split: Split, answers: Answers, about: Mapping[str, Any]) -> None:
    """Write the answers to a split, and pictures of the images that a report shows.

    Args:
        run: the folder.
        role: `train`, `validation` or `test`.
        model: that answered.
        split: the rows.
        answers: its ids and logits, of those that could be read.
        about: facts of the checkpoint.
    """
    ids, logits = answers
    if not len(ids):
        return
    positions = np.searchsorted(split.rows, ids)
    labels = model.hparams["labels"]
    outputs = Outputs(
        role,
        model.task,
        labels,
        ids,
        names_of_images(split, positions),
        split.targets[positions],
        logits,
        model.temperature,
        thresholds_of(labels, model.thresholds).numpy(),
        {**about, "source": split.name, "fingerprint": split.fingerprint, "unreadable": len(split) - len(ids)},
    )
    chosen = select(outputs)
    pixels = {n: TableImages(split).pixels(int(positions[n])) for n in chosen.all}
    pictures = {int(ids[n]): _jpeg(image) for n, image in pixels.items()}
    looked = {int(ids[n]): _jpeg(attributed(model, pixels[n])) for n in _explained(chosen, model)}
    write_outputs(run, outputs)
    write_pictures(run, role, {"image": pictures, "attribution": looked})


def _explained(chosen: Selection, model: ViTClassifier) -> list[int]:
    return chosen.attributed if has_attention(model) else []


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 -> a small JPEG of it."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    small = tv.resize(image, PICTURE - 1, max_size=PICTURE, antialias=True).permute(1, 2, 0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()), quality=QUALITY)
