"""By what a run was trained: the command, the machine, the libraries, the time; an entry for each time it went on."""

import json
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from vitcls import runs
from vitcls.callbacks import DataWait
from vitcls.machine import machine

_LIBRARIES = ("lightning", "transformers", "peft", "datasets", "torchmetrics")


def write_start(run: Path) -> None:
    """Note that a training begins or goes on."""
    entry = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "vitcls", *sys.argv[1:]]),
        "machine": machine(*_LIBRARIES),
    }
    _write(run, [*runs.read_sessions(run), entry])


def write_end(run: Path, trainer: Trainer) -> None:
    """Note that what `write_start` noted has come to its end: how long it took, how fast, with how much memory."""
    noted = runs.read_sessions(run)
    if not noted:
        return  # somebody has deleted it meanwhile
    *before, entry = noted
    wait = next((c for c in trainer.callbacks if isinstance(c, DataWait)), None)  # type: ignore[attr-defined]
    measured: dict[str, Any] = {
        "seconds": (datetime.now(UTC) - datetime.fromisoformat(entry["started"])).total_seconds(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "peak_memory_mb": _peak_memory(),
    }
    if torch.cuda.is_available():
        measured["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    if wait is not None and wait.lasted:
        measured["images_per_second"] = wait.images * trainer.world_size / wait.lasted
        measured["data_wait"] = wait.waited / wait.lasted
    _write(run, [*before, entry | measured])


def _peak_memory() -> float | None:
    """MB of this process, without the workers that decode; None where the system does not say."""
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return None


def _write(run: Path, entries: list[dict[str, Any]]) -> None:
    runs.write_text(run / runs.SESSIONS, json.dumps(entries, indent=2) + "\n")
