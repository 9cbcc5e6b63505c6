"""The folder of a run: its name, what lies in it, and which checkpoint a path means."""

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from vitcls.errors import UserError, listing

log = logging.getLogger(__name__)

DEFAULT_ROOT = "checkpoints"
CONFIG = "config.yaml"
SPLITS = "splits.json"
METRICS = "metrics.json"
THRESHOLDS = "thresholds.json"
HISTORY = "metrics.csv"
RANGE_TEST = "lr_find.png"  # the plot of --lr_find
BEST = "best.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the last.ckpt before it, while training
CHECKPOINTS = (LAST, PREVIOUS, BEST)  # from which a run goes on: the first that is whole
PART = ".part"  # ends the name of a file that is being written
MODEL = "model"
RECORD = "vitcls"  # key of a checkpoint under which it tells about itself
UNLOGGED = "unlogged"  # and of the figures of its epoch, which are logged after it was written


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, and the run folder that it stands in, if it stands in one."""

    file: Path
    run: Path | None


def claim_run_folder(root: Path, name: str) -> Path:
    """Make a new folder for a run: `name`, or `name-v1`, `name-v2`, ... where that exists.

    Two runs that start at once get two folders: mkdir lets only one of them have a name.

    Raises:
        UserError: the name is not that of a single folder.
    """
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"--run_name {name!r} must be the name of one folder; its place is --trainer.default_root_dir.")
    try:
        return _claim(root.expanduser(), name)
    except OSError as error:
        raise UserError(f"No run folder can be made in --trainer.default_root_dir {str(root)!r}: {error}.") from error


def _claim(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    version = 0
    while True:
        folder = root / (f"{name}-v{version}" if version else name)
        try:
            folder.mkdir()
        except FileExistsError:
            version += 1
        else:
            return folder


def discard_if_unused(folder: Path) -> None:
    """Remove a run folder that holds neither a checkpoint nor a learning curve."""
    if folder.is_dir() and not any(folder.glob("*.ckpt")) and not (folder / HISTORY).exists():
        shutil.rmtree(folder)


def check_unused(folder: Path) -> None:
    """Refuse to start a run in a folder that holds more than a run leaves before its first checkpoint.

    Raises:
        UserError: names what is there.
    """
    own = ("config*.yaml", "splits*.json", "hparams.yaml", HISTORY, RANGE_TEST, "events.out.tfevents.*", f".*{PART}")
    others = sorted(file.name for file in folder.iterdir() if not any(file.match(pattern) for pattern in own))
    if others:
        raise UserError(
            f"--resume cannot start in {folder}, which holds {listing(others, 4)} and no checkpoint of a run; give "
            "another --run_name."
        )


def open_checkpoint(path: str, verb: str) -> tuple[Checkpoint, dict[str, Any]]:
    """What `--ckpt_path` means, and its content: a .ckpt, or the last (fit) or best (otherwise) one of a run folder.

    Where a run is to go on and its last checkpoint is damaged or gone, the one before it is taken, or else the best.

    Raises:
        UserError: there is none, or none that can be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _first_whole([Checkpoint(file, place) for file in _checkpoints_of_run(place, verb)])
    if place.is_file():
        checkpoint = Checkpoint(place, place.parent if (place.parent / CONFIG).is_file() else None)
        return checkpoint, read_checkpoint(checkpoint)
    raise UserError(
        f"--ckpt_path {path!r} does not exist; give a run folder or a .ckpt file{_known_runs(place.parent)}."
    )


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
        UserError: not a checkpoint, or a damaged one.
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
    return content


def arguments_of(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a model or datamodule was made with, without the note that LightningCLI adds."""
    return {name: value for name, value in hyper_parameters.items() if name != "_instantiator"}


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run was started with; empty where none was kept."""
    file = run / CONFIG
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is damaged; restore it from a copy, or give the .ckpt from another folder.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no configuration; restore it from a copy.")
    return content


def write_anew(file: Path, text: str) -> None:
    """Write a file whose former content is kept aside where it was another: config.yaml as config.1.yaml, .2, ..."""
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        number = 1
        while (aside := file.with_suffix(f".{number}{file.suffix}")).exists():
            number += 1
        shutil.copy2(file, aside)
    write_text(file, text)


def write_text(file: Path, text: str) -> None:
    """Write a file at once: whoever reads it, and whoever is killed meanwhile, finds the former one or this one."""
    part = file.with_name(f".{file.name}{PART}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of `metrics.json`; empty where there is none."""
    return _read_json(run / METRICS)


def read_splits(run: Path) -> dict[str, Any]:
    """The content of `splits.json`; empty where there is none."""
    return _read_json(run / SPLITS)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); restore it from a copy, or delete it to go on without."
        ) from error


def write_metrics(run: Path, section: str, figures: dict[str, Any]) -> None:
    """Put a section into `metrics.json`, leaving the others as they are."""
    content = {**read_metrics(run), section: figures}
    write_text(run / METRICS, json.dumps(content, indent=2) + "\n")


def write_thresholds(run: Path, thresholds: dict[str, float]) -> None:
    """Write `thresholds.json`: the name of each label and its threshold."""
    write_text(run / THRESHOLDS, json.dumps(thresholds, indent=2) + "\n")


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
