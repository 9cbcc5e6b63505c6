"""Where an exported folder is made: it takes the place of an earlier export, and of nothing else."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitcls import runs
from vitcls.checkpoints import Checkpoint
from vitcls.errors import UserError, listing
from vitcls.manifest import files_of, read_manifest

_BEFORE = ".before"  # ends the name of the earlier export, until the new one has its name


def place_for(output: str | None, checkpoint: Checkpoint, to: str) -> Path:
    """The folder to make, as an absolute path.

    Args:
        output: that was asked for, if any.
        checkpoint: that is exported.
        to: the format.

    Raises:
        UserError: something is there that is no earlier export, or more than that.
    """
    run = checkpoint.run or checkpoint.file.parent
    place = (Path(output).expanduser() if output else run / runs.EXPORTED / to).resolve()
    if place.exists():
        _check_replaceable(place)
    return place


@contextmanager
def half_made(place: Path) -> Iterator[Path]:
    """A folder beside `place` that takes its name when it is done, and is removed where it is not.

    Raises:
        UserError: it cannot be written.
    """
    folder = place.with_name(f".{place.name}{runs.PART}")
    try:
        with _written(place):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield folder
        with _written(place):
            _exchange(place, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {str(place)!r} cannot be written ({error}); name another place.") from error


def _check_replaceable(place: Path) -> None:
    if place.is_dir() and not any(place.iterdir()):
        return
    try:
        known = read_manifest(place).files
    except UserError as error:  # also of another program's manifest.json
        raise UserError(
            f"--output {str(place)!r} exists and is no exported folder; name another, or remove it first."
        ) from error
    others = sorted(set(files_of(place)) - set(known))
    if others:
        raise UserError(
            f"--output {str(place)!r} would be replaced, but holds more than was exported ({listing(others)}); move "
            "that away, or name another folder."
        )


def _exchange(place: Path, folder: Path) -> None:
    """Put the folder in its place; what was there is removed when that is done."""
    before = place.with_name(f".{place.name}{_BEFORE}")
    if place.exists():
        shutil.rmtree(before, ignore_errors=True)
        place.rename(before)
    try:
        folder.rename(place)
    except OSError:
        if before.exists():
            before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)
