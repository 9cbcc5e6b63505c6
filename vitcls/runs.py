"""The folder of a run: its name and what lies in it. Without torch, so that looking at runs is quick."""

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vitcls.errors import UserError, listing

DEFAULT_ROOT = "checkpoints"
CONFIG = "config.yaml"
SPLITS = "splits.json"
METRICS = "metrics.json"
THRESHOLDS = "thresholds.json"
SESSIONS = "sessions.json"
TRACKING = "tracking.json"  # the runs of W&B and MLflow that belong to the folder
HISTORY = "metrics.csv"
RANGE_TEST = "lr_find.png"  # the plot of --lr_find
BEST = "best.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the last.ckpt before it, while training
CHECKPOINTS = (LAST, PREVIOUS, BEST)  # from which a run goes on: the first that is whole
PART = ".part"  # ends the name of a file that is being written
MODEL = "model"
EXPORTED = "exported"  # folder of what was made of the run for others, by format
OUTPUTS = "outputs"  # folder of what the model said of its splits
REPORT = "report"  # folder of the page, PAGE, and of its FIGURES
PAGE = "index.html"
FIGURES = "figures"
# Of each task, the figure by which best.ckpt is chosen. Of many labels most are absent from an
# image, and to say none is accurate: multilabel is judged by its ranking.
MONITOR: Mapping[str, str] = {"multiclass": "val/accuracy", "multilabel": "val/map"}


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
    own = (
        "config*.yaml",
        "splits*.json",
        "hparams.yaml",
        HISTORY,
        SESSIONS,
        TRACKING,
        RANGE_TEST,
        "events.out.tfevents.*",
        f".*{PART}",
    )
    others = sorted(file.name for file in folder.iterdir() if not any(file.match(pattern) for pattern in own))
    if others:
        raise UserError(
            f"--resume cannot start in {folder}, which holds {listing(others, 4)} and no checkpoint of a run; give "
            "another --run_name."
        )


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
    with at_once(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def at_once(file: Path) -> Iterator[Path]:
    """What is written to the path that this gives becomes the file at the end of the block, if all went well."""
    part = file.with_name(f".{file.name}{PART}")
    yield part
    part.replace(file)


def read_history(file: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` by its columns; none where there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if (row.get("step") or "").isdigit()]  # a killed process may have left half a line


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of `metrics.json`; empty where there is none."""
    return _read_json(run / METRICS)


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """The content of `sessions.json`, an entry for each time that the run was trained; empty where there is none."""
    return _read_json(run / SESSIONS, list)


def read_splits(run: Path) -> dict[str, Any]:
    """The content of `splits.json`; empty where there is none."""
    return _read_json(run / SPLITS)


def read_tracking(run: Path) -> dict[str, Any]:
    """The content of `tracking.json`; empty where there is none."""
    return _read_json(run / TRACKING)


def write_tracking(run: Path, arguments: dict[str, dict[str, Any]]) -> None:
    """Write `tracking.json`: of each logger by its class, the arguments with which it goes on with its run."""
    write_text(run / TRACKING, json.dumps(arguments, indent=2) + "\n")


def _read_json(file: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else kind()
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, not a {kind.__name__}")
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); restore it from a copy, or delete it to go on without."
        ) from error
    return content


def write_metrics(run: Path, section: str, figures: dict[str, Any]) -> None:
    """Put a section into `metrics.json`, leaving the others as they are."""
    content = {**read_metrics(run), section: figures}
    write_text(run / METRICS, json.dumps(content, indent=2) + "\n")


def write_thresholds(run: Path, thresholds: dict[str, float]) -> None:
    """Write `thresholds.json`: the name of each label and its threshold."""
    write_text(run / THRESHOLDS, json.dumps(thresholds, indent=2) + "\n")
