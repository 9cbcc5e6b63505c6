"""The table of runs: framed on a terminal, in aligned columns without a break in a line elsewhere."""

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitcls.overview.summary import RunSummary

HEADER = ("run", "data", "model", "validation", "test", "size", "age", "")
_NONE = "-"
_UNITS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (0, "s"))


def print_table(found: Sequence[RunSummary]) -> None:
    """Print a line for each run."""
    console = Console()
    rows = [_row(run, time.time(), narrow=console.is_terminal) for run in found]
    if not console.is_terminal:
        print("\n".join(_aligned([HEADER, *rows])))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEADER:
        side: Literal["right", "left"] = "right" if name in ("size", "age") else "left"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name not in ("data", "model", ""))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def as_json(found: Sequence[RunSummary]) -> str:
    """A list with an object for each run; `changed` is the time of its last training, ISO 8601."""
    shown = [field.name for field in fields(RunSummary) if not field.name.startswith("_")]
    objects = [{name: getattr(run, name) for name in shown} | {"changed": _iso(run.changed)} for run in found]
    return json.dumps(objects, indent=2)


def _row(run: RunSummary, now: float, narrow: bool) -> tuple[str, ...]:
    data, model = (Path(text).name if narrow else text for text in (run.data, run.model))
    model += f" ({run.trained})" if run.trained else ""
    validation = _NONE if run.validation is None else f"{run.monitor.removeprefix('val/')} {run.validation:.4f}"
    test = _NONE if run.test is None else f"{run.test:.4f}"
    if run.test is not None and run.test_reads > 1:
        test += f" (read {run.test_reads} times)"
    size, age = _bytes(run.size), _age(now - run.changed)
    return (run.folder, data or _NONE, model or _NONE, validation, test, size, age, run.note)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    """Of a clock that was set back: 0 s."""
    seconds = max(seconds, 0.0)
    length, unit = next(pair for pair in _UNITS if seconds >= pair[0])
    return f"{int(seconds // (length or 1))} {unit}"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
