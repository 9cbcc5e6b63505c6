"""What a report says of a run, as plain values: measured figures, chosen images, facts of the training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcls import runs
from vitcls.errors import UserError
from vitcls.outputs import ROLES, Outputs, read_outputs
from vitcls.pictures import Pictures, read_pictures
from vitcls.report.measures import Figures, measure
from vitcls.report.selection import Selection, select


@dataclass(frozen=True)
class SplitContent:
    """What is known of the answers to a split; of training images, which were learned, no figures."""

    outputs: Outputs
    figures: Figures
    chosen: Selection
    pictures: Pictures


@dataclass(frozen=True)
class RunContent:
    """What is known of a run.

    Attributes:
        run: the folder.
        splits: by role; those of other weights than the ones that are kept are left out.
        stale: roles that were left out for that.
        config: as the run was started.
        written: the content of `metrics.json`.
        sessions: of its training.
    """

    run: Path
    splits: dict[str, SplitContent]
    stale: list[str]
    config: dict[str, Any]
    written: dict[str, Any]
    sessions: list[dict[str, Any]]

    @property
    def headline(self) -> SplitContent:
        """The split by which the run is to be judged: the test, or else the validation it was chosen by."""
        return self.splits.get("test") or self.splits["validation"]


def read_content(run: Path) -> RunContent:
    """Read and measure what a run has saved.

    Raises:
        UserError: there is nothing to report, or a file is damaged.
    """
    if not run.is_dir():
        raise UserError(f"The run {str(run)!r} does not exist; `python -m vitcls runs` lists those that do.")
    if not any((run / name).exists() for name in (runs.CONFIG, runs.METRICS, runs.OUTPUTS, *runs.CHECKPOINTS)):
        raise UserError(f"{run} is not the folder of a run; `python -m vitcls runs {run}` lists those that are in it.")
    found = {role: outputs for role in ROLES if (outputs := read_outputs(run, role)) is not None and len(outputs)}
    written = runs.read_metrics(run)
    step = written.get("validation", {}).get("step")
    stale = [role for role, outputs in found.items() if step is not None and outputs.about["step"] != step]
    splits = {role: _content(run, outputs) for role, outputs in found.items() if role not in stale}
    if not {"test", "validation"} & splits.keys():
        raise UserError(
            f"{run} holds no answers of its model to report on ({runs.OUTPUTS}/): they are kept at the end of `fit` "
            f"and `test`, unless --report false was said; `python -m vitcls test --ckpt_path {run}` makes those to the "
            "test images. A training that was interrupted goes on with `fit --ckpt_path` first."
        )
    return RunContent(run, splits, stale, runs.read_config(run), written, runs.read_sessions(run))


def _content(run: Path, outputs: Outputs) -> SplitContent:
    figures = {} if outputs.role == "train" else measure(outputs)
    return SplitContent(outputs, figures, select(outputs), read_pictures(run, outputs.role))
