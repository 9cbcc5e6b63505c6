"""Which checkpoint a path means, and what is in it."""

import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitcls.errors import UserError, listing
from vitcls.manifest import MANIFEST, check_files, is_exported, read_manifest
from vitcls.runs import BEST, CHECKPOINTS, CONFIG, LAST, PREVIOUS

log = logging.getLogger(__name__)

RECORD = "vitcls"  # key of a checkpoint under which it tells about itself
MEASURING = ("validate", "test", "predict")  # verbs that take what cannot be trained
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # what Lightning writes down to make a model with
UNLOGGED = "unlogged"  # and of the figures of its epoch, which are logged after it was written


@dataclass(frozen=True)
class Checkpoint:
    """What a model is loaded from.

    Attributes:
        file: the checkpoint; of an exported folder its manifest.
        run: the run folder that the checkpoint stands in, if it stands in one; of an exported folder None.
        exported_from: of an exported folder, the run that it lies in and was made of, if it is there.
    """

    file: Path
    run: Path | None
    exported_from: Path | None = None

    @property
    def is_exported(self) -> bool:
        """Whether it is an exported folder, which has no weights that Lightning could load."""
        return self.file.name == MANIFEST

    @property
    def data_run(self) -> Path | None:
        """The run whose data is taken where no other is named."""
        return self.run or self.exported_from


def open_checkpoint(path: str, verb: str) -> tuple[Checkpoint, dict[str, Any]]:
    """What `--ckpt_path` means, and its content: a .ckpt, or the last (fit) or best (otherwise) one of a run folder.

    Or an exported folder, with what a checkpoint of it would hold.

    Where a run is to go on and its last checkpoint is damaged or gone, the one before it is taken, or else the best.

    Raises:
        UserError: there is none, or none that can be read.
    """
    place = Path(path).expanduser()
    if is_exported(place):
        return _exported(place, verb)
    if place.is_dir():
        return _first_whole([Checkpoint(file, place) for file in _checkpoints_of_run(place, verb)])
    if place.is_file():
        checkpoint = Checkpoint(place, place.parent if (place.parent / CONFIG).is_file() else None)
        return checkpoint, read_checkpoint(checkpoint)
    raise UserError(
        f"--ckpt_path {path!r} does not exist; give a run folder or a .ckpt file{_known_runs(place.parent)}."
    )


def _exported(folder: Path, verb: str) -> tuple[Checkpoint, dict[str, Any]]:
    if verb not in MEASURING:
        raise UserError(
            f"{folder} is an exported folder, which {', '.join(MEASURING)} take, and {verb} does not; give the run "
            "folder that it was made of."
        )
    manifest = read_manifest(folder)
    if manifest.is_model_folder:  # of a graph its runtime looks
        check_files(folder, manifest)
    run = None if manifest.run is None else Path(os.path.normpath(folder.absolute() / manifest.run))
    source = {"checkpoint": str(folder)} if manifest.is_model_folder else {"exported": str(folder)}
    known = {"task": manifest.task, "labels": manifest.labels, "image": manifest.image}
    content = {
        "hyper_parameters": {**source, **known, "thresholds": manifest.thresholds or None},
        "global_step": manifest.made_of.get("step", 0),
        RECORD: {"precision": "32-true"},
    }
    if run is None or not (run / BEST).is_file():
        return Checkpoint(folder / MANIFEST, None), content
    trained = read_checkpoint(Checkpoint(run / BEST, run))
    content["datamodule_hyper_parameters"] = trained["datamodule_hyper_parameters"]
    return Checkpoint(folder / MANIFEST, None, run), content


def _first_whole(candidates: list[Checkpoint]) -> tuple[Checkpoint, dict[str, Any]]:
    for older, checkpoint in enumerate(candidates, 1):
        try:
            content = read_checkpoint(checkpoint)
        except UserError as error:
            if older == len(candidates):
                raise
            log.warning("%s Trying %s.", error, candidates[older].file.name)
            continue
        if older > 1 or checkpoint.file.name == PREVIOUS:
            log.warning("going on from %s, of step %d", checkpoint.file, content["global_step"])
        return checkpoint, content
    raise AssertionError("there is at least one candidate")


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is ever executed.

    Raises:
        UserError: not a checkpoint, a damaged one, or one that would have an exported network loaded.
    """
    try:
        with zipfile.ZipFile(checkpoint.file) as archive:
            damaged = archive.testzip()  # torch reads wrong bytes without a word
        if damaged is not None:
            raise ValueError(f"wrong bytes in its part {damaged}")
        content = torch.load(checkpoint.file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile and torch raise many kinds for broken archives
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The checkpoint {checkpoint.file} cannot be read ({reason}); it may be damaged.") from error
    if not isinstance(content, dict) or not {"hyper_parameters", RECORD} <= content.keys():
        raise UserError(f"{checkpoint.file} is not a checkpoint of a vitcls run.")
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        _check_is_of_training(checkpoint.file, content.get(part, {}))
    return content


def _check_is_of_training(file: Path, hyper_parameters: Mapping[str, Any]) -> None:
    """Refuse what no training writes: a file that is trusted by its own word, or that chooses what makes the model."""
    if hyper_parameters.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:  # Lightning would import and call it
        raise UserError(
            f"{file} names code that Lightning would run, as no checkpoint of a training does; do not use it."
        )
    for name in ("exported", "trust_exported"):
        if hyper_parameters.get(name):
            raise UserError(
                f"{file} says --model.{name} itself, as no checkpoint of a training does; do not use it, unless you "
                "trust who made it, and then give the exported folder with --ckpt_path."
            )


def arguments_of(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a model or datamodule was made with, without the note that LightningCLI adds."""
    return {name: value for name, value in hyper_parameters.items() if name != "_instantiator"}


def _checkpoints_of_run(run: Path, verb: str) -> list[Path]:
    """Those that serve a verb, the one that is meant first."""
    if verb == "fit":
        found = [run / name for name in CHECKPOINTS if (run / name).is_file()]
    else:
        found = [run / name for name in (BEST, LAST) if (run / name).is_file()][:1]
        if found == [run / LAST]:
            log.warning("%s has no %s (no epoch was validated): %s takes its place", run, BEST, LAST)
    if found:
        return found
    there = sorted(f.name for f in run.glob("*.ckpt"))
    if there:
        raise UserError(f"The run {run} has no {LAST}, but {listing(there)}; give that file with --ckpt_path.")
    raise UserError(f"The folder {run} holds no checkpoint{_known_runs(run)}.")


def _known_runs(root: Path) -> str:
    runs = sorted({str(f.parent) for f in root.glob("*/*.ckpt")}) if root.is_dir() else []
    return f" (runs there: {listing(runs)})" if runs else ""
