"""The learning curves of a run."""

from pathlib import Path

from vitcls import runs

Curve = list[tuple[int, float]]  # (optimiser steps, value)


def read_history(run: Path) -> dict[str, Curve]:
    """Each figure of `metrics.csv` over the optimiser steps that had been made; empty where there is none."""
    curves: dict[str, Curve] = {}
    for row in runs.read_history(run / runs.HISTORY):
        steps = int(row.pop("step")) + 1
        for name, text in row.items():
            value = _number(text)
            if value is not None:
                curves.setdefault(name, []).append((steps, value))
    return curves


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
