"""The learning curves of a run."""

import csv
from pathlib import Path

from vitcls import runs

Curve = list[tuple[int, float]]  # (optimiser steps, value)


def read_history(run: Path) -> dict[str, Curve]:
    """Each figure of `metrics.csv` over the optimiser steps that had been made; empty where there is none."""
    file = run / runs.HISTORY
    if not file.is_file():
        return {}
    curves: dict[str, Curve] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            step = row.pop("step", None)
            if not (step or "").isdigit():
                continue  # a killed process may have left half a line
            for name, text in row.items():
                value = _number(text)
                if value is not None:
                    curves.setdefault(name, []).append((int(step or 0) + 1, value))
    return curves


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
