"""Whether callbacks watch figures that there are, in the direction that is better."""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from vitcls.callbacks.checkpoint import RunCheckpoint
from vitcls.callbacks.plateau import RateOnPlateau
from vitcls.errors import UserError, listing, suggestion
from vitcls.metrics import figure_names
from vitcls.types import Task

_OWN = ("lightning.", "vitcls.")  # callbacks from elsewhere may log figures of their own


def check_monitors(callbacks: Iterable[Callback], task: Task) -> None:
    """Refuse, before any training, a callback that watches an unknown figure or the wrong way.

    Lightning tells of the first after an epoch, and of the second never: EarlyStopping's default
    mode, `min`, ends a training as soon as its accuracy rises.

    Raises:
        UserError: names the callback and what it could watch.
    """
    callbacks = list(callbacks)
    if not all(type(callback).__module__.startswith(_OWN) for callback in callbacks):
        return
    known = [name for stage in ("train", "val") for name in figure_names(stage, task)]
    for callback in callbacks:
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor is not None:
            counted = ["epoch"] if isinstance(callback, ModelCheckpoint) else []
            _check(type(callback).__name__, callback.monitor, callback.mode, [*known, *counted])
        if isinstance(callback, RateOnPlateau):
            _check("RateOnPlateau", callback.monitor, callback.mode, known)
        if isinstance(callback, RunCheckpoint):
            _check("RunCheckpoint's tie_break", callback.tie_break, "min", known)


def _check(callback: str, monitor: str, mode: str, known: list[str]) -> None:
    if monitor not in known:
        raise UserError(
            f"{callback} watches {monitor!r}, which is not measured{suggestion(monitor, known)}; "
            f"what is: {listing(known)}."
        )
    better = "min" if monitor.endswith("loss") else "max"
    if mode != better:
        raise UserError(
            f"{callback} watches {monitor!r} with mode {mode!r}, but of that figure more is "
            f"{'worse' if better == 'min' else 'better'}: write mode: {better}."
        )
