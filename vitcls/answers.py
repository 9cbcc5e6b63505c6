"""What a report is made of, kept with a run: the answers to its splits, and pictures of what stands out in them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
from vitcls.data.rows import TableImages, names_and_sizes
from vitcls.data.splits import Split
from vitcls.left_out import left_out_scores
from vitcls.models.attribution import attributed, has_attention
from vitcls.models.classifier import ViTClassifier
from vitcls.models.features import embeddings_of_head, has_one_head
from vitcls.models.tasks import thresholds_of
from vitcls.outputs import Outputs, write_outputs
from vitcls.pictures import KINDS, Pictures, write_pictures
from vitcls.report.selection import select
from vitcls.types import Targets

ASKED = 100_000  # images of a split after a fit at most, evenly chosen: more take long and say little more
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
    about = {name: written[name] for name in ("checkpoint", "epoch", "step")} | {"views": datamodule.hparams["tta"]}
    model = cast(ViTClassifier, trainer.precision_plugin.convert_module(model))  # bf16-true takes no float32 weights
    model.to(trainer.strategy.root_device).eval()
    for role in ("validation", "train"):
        split = datamodule.splits[role]
        if isinstance(split, Split):  # a stream has no rows to come back to
            answers, features = _asked(model, datamodule, trainer, role)
            keep(run, role, model, split, answers, {**about, "asked": min(len(split), ASKED)}, features)


def keep_after_test(run: Path, model: ViTClassifier, datamodule: ImageDataModule, answers: Answers) -> None:
    """Keep the answers to the test images.

    Args:
        run: the folder, after the test figures were written.
        model: that was tested.
        datamodule: after the test.
        answers: from `TestAnswers`.
    """
    written, split = runs.read_metrics(run)["test"], cast(Split, datamodule.splits["test"])
    about = {name: written[name] for name in ("checkpoint", "step", "reads", "chose_the_weights")}
    about |= {"asked": len(split), "views": datamodule.hparams["tta"]}
    keep(run, "test", model, split, answers, about)


@torch.inference_mode()
def _asked(
    model: ViTClassifier, datamodule: ImageDataModule, trainer: Trainer, role: str
) -> tuple[Answers, NDArray[np.float32] | None]:
    """The answers to a split; of training images also the features (N, F) that the head made them of, if it is one."""
    batches, count = datamodule.evaluated(role, ASKED)
    told = f"answers to {role} for the report"
    precision = trainer.precision_plugin
    shown = Console(stderr=True)
    with_features = role == "train" and has_one_head(model.network)
    parts, features = [], []
    for batch in track(batches, told, count, console=shown, disable=not sys.stderr.isatty(), transient=True):
        if not len(batch["ids"]):
            continue
        with precision.forward_context(), embeddings_of_head(model.network, with_features) as embeddings:
            logits = model.logits(precision.convert_input(batch["pixel_values"]))
        parts.append((batch["ids"], logits.float().cpu()))
        if (found := embeddings()) is not None:
            features.append((batch["ids"], found.cpu()))
    return joined(parts), joined(features)[1] if features else None


def keep(
    run: Path,
    role: str,
    model: ViTClassifier,
    split: Split,
    answers: Answers,
    about: Mapping[str, Any],
    features: NDArray[np.float32] | None = None,
) -> None:
    """Write the answers to a split, and pictures of the images that a report shows.

    Args:
        run: the folder.
        role: `train`, `validation` or `test`.
        model: that answered; in evaluation mode afterwards.
        split: the rows.
        answers: its ids and logits, of those that could be read.
        about: facts of the checkpoint, and how many rows were `asked`.
        features: (N, F) of these rows, where they were trained on.
    """
    ids, logits = answers
    if not len(ids):
        return
    positions = np.searchsorted(split.rows, ids)
    labels, targets = model.hparams["labels"], split.targets[positions]
    names, sizes = names_and_sizes(split, positions)
    outputs = Outputs(
        role,
        model.task,
        labels,
        ids,
        names,
        targets,
        logits,
        model.temperature,
        thresholds_of(labels, model.thresholds).numpy(),
        {**about, **_facts_of(split, model), "sizes": sizes, "unreadable": about["asked"] - len(ids)},
        None if features is None or len(ids) < 2 else left_out_scores(features, one_hot(targets, len(labels))),
    )
    pictures = _pictures(model.eval(), TableImages(split), outputs, positions)
    write_outputs(run, outputs)
    write_pictures(run, role, pictures)


def _facts_of(split: Split, model: ViTClassifier) -> dict[str, Any]:
    return {
        "rows": len(split),
        "source": split.name,
        "fingerprint": split.fingerprint,
        "temperature_given": model.hparams["temperature"] is not None,
    }


def one_hot(targets: Targets, classes: int) -> NDArray[np.bool_]:
    """(N,) class indices, or (N, K) bool, -> (N, K) bool."""
    return targets.astype(bool) if targets.ndim == 2 else np.eye(classes, dtype=bool)[targets]


def _pictures(model: ViTClassifier, images: TableImages, outputs: Outputs, positions: NDArray[np.int64]) -> Pictures:
    """Of the images that a report shows; one at a time, since a photo that is decoded takes 36 MB and more."""
    chosen = select(outputs)
    explained = set(chosen.attributed) if has_attention(model) else set()
    found: Pictures = {kind: {} for kind in KINDS}
    for n in chosen.all:
        number, pixels = int(outputs.ids[n]), images.pixels(int(positions[n]))
        found["image"][number] = _jpeg(pixels)
        if n in explained:
            found["attribution"][number] = _jpeg(attributed(model, pixels))
    return found


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 -> a small JPEG of it."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    small = tv.resize(image, PICTURE - 1, max_size=PICTURE, antialias=True).permute(1, 2, 0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small.numpy()), quality=QUALITY)
