"""What is told of a run folder without opening a checkpoint."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcls import runs
from vitcls.errors import UserError
from vitcls.run_config import Choice, choice_of, network_of, trained_of

FINISHED, UNFINISHED, DAMAGED = "finished", "unfinished", "damaged"
_OF_A_RUN = (runs.CONFIG, runs.METRICS, runs.HISTORY, "*.ckpt")  # a folder that has one of these is a run
_OF_TRAINING = (runs.CONFIG, runs.HISTORY, "*.ckpt")  # what a later test does not write
_SOURCES = ("dataset", "train_dir", "train_files")


@dataclass
class RunSummary:
    """One run folder.

    Attributes:
        folder: as it can be given to `--ckpt_path`.
        data: what it was trained on: Hub id, folder or files.
        model: checkpoint or architecture it started from.
        trained: what of it was trained: the adapter's method, `all`, `head`, ...
        monitor: name of the validation figure by which its best epoch was chosen.
        validation: that figure in `best.ckpt`, or of an unfinished run its best so far; None where there is none.
        test: the same figure of the test data; None where it was not read.
        test_reads: how often the test data was read.
        size: bytes of the folder.
        changed: when it was last trained, seconds since 1970.
        state: finished, unfinished or damaged.
        note: in words, what there is to say of it.
    """

    folder: str
    data: str = ""
    model: str = ""
    trained: str = ""
    monitor: str = runs.MONITOR["multiclass"]
    validation: float | None = None
    test: float | None = None
    test_reads: int = 0
    size: int = 0
    changed: float = 0.0
    state: str = FINISHED
    note: str = ""
    _damages: list[str] = field(default_factory=list, repr=False)

    def damaged(self, what: str) -> None:
        """Note that a file says nothing."""
        self._damages.append(what)
        self.state, self.note = DAMAGED, "; ".join(self._damages)


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run has written."""
    return any(any(folder.glob(pattern)) for pattern in _OF_A_RUN)


def summary(folder: Path) -> RunSummary:
    """What there is to say of a run; what is damaged or missing in it is said in its note."""
    found = RunSummary(str(folder), size=_size(folder), changed=_changed(folder))
    config = _config(folder, found)
    _read_config(config, found)
    metrics = _metrics(folder, found)
    _read_metrics(metrics, found)
    if not metrics.get("validation") and found.state != DAMAGED:
        _read_history(folder, config, found)
    return found


def _config(folder: Path, found: RunSummary) -> dict[str, Any]:
    try:
        return runs.read_config(folder)
    except (UserError, OSError):
        found.damaged(f"{runs.CONFIG} is damaged")
        return {}


def _metrics(folder: Path, found: RunSummary) -> dict[str, Any]:
    try:
        content = runs.read_metrics(folder)
    except (UserError, OSError):
        content = {runs.METRICS: None}
    if not all(isinstance(section, dict) for section in content.values()):
        found.damaged(f"{runs.METRICS} is damaged")
        return {}
    return content


def _read_config(config: dict[str, Any], found: RunSummary) -> None:
    data, model = (part if isinstance(part := config.get(key), dict) else {} for key in ("data", "model"))
    named = next((data[key] for key in _SOURCES if data.get(key)), "")
    places = [str(place) for place in (named if isinstance(named, list) else [named])]
    found.data = " ".join([*places, *([str(data["config_name"])] if data.get("config_name") else [])])
    found.model, found.trained = network_of(config), trained_of(config)
    found.monitor = _choice(config, str(model.get("task"))).monitor


def _choice(config: dict[str, Any], task: str) -> Choice:
    """By what the best epoch was chosen; where the last one was kept, what would have chosen it."""
    task = task if task in runs.MONITOR else "multiclass"
    choice = choice_of(config, task)
    return choice if choice.monitor.startswith("val/") else Choice(runs.MONITOR[task])


def _read_metrics(metrics: dict[str, Any], found: RunSummary) -> None:
    validation, test = metrics.get("validation", {}), metrics.get("test", {})
    if not found.model or found.monitor not in validation:
        # A soup has no configuration. Multilabel figures have an accuracy as well, the others no map.
        found.monitor = next(
            (name for name in reversed(list(runs.MONITOR.values())) if name in validation), found.monitor
        )
    found.validation = _figure(validation.get(found.monitor))
    found.test = _figure(test.get(found.monitor.replace("val/", "test/")))
    found.test_reads = int(_figure(test.get("reads")) or 0)
    soup = metrics.get("soup", {}).get("mean_of")
    if isinstance(soup, list) and not found.model:
        found.model, found.trained = f"mean of {', '.join(map(str, soup))}", "soup"
    if "step" in test and found.test is None:  # else an export of the run was tested, and the run never
        found.note = "tested with former weights"


def _figure(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _read_history(folder: Path, config: dict[str, Any], found: RunSummary) -> None:
    """How far an unfinished run has come: the epochs that were validated, and the best figure."""
    found.state, found.note = UNFINISHED, "unfinished, not validated yet"
    try:
        rows = [row for row in runs.read_history(folder / runs.HISTORY) if row.get(found.monitor)]
        best = min if _choice(config, "multiclass").mode == "min" else max
        found.validation = best(float(row[found.monitor]) for row in rows)
        epochs = int(rows[-1]["epoch"]) + 1
    except (OSError, ValueError, KeyError, TypeError):  # none, none validated, or half a line of a killed process
        return
    trainer = config.get("trainer")
    wanted = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    found.note = f"unfinished, epoch {epochs}" + (f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else "")


def _changed(folder: Path) -> float:
    return (
        max((_stat(file)[1] for pattern in _OF_TRAINING for file in folder.glob(pattern)), default=0.0)
        or (_stat(folder)[1])
    )


def _size(folder: Path) -> int:
    return sum(_stat(file)[0] for file in folder.rglob("*"))


def _stat(file: Path) -> tuple[int, float]:
    """Bytes and time of change; nothing of what a running training has just removed, or a folder."""
    try:
        stat = file.lstat()
    except OSError:
        return 0, 0.0
    return (0 if file.is_dir() else stat.st_size), stat.st_mtime
