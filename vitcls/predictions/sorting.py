"""Images, linked in folders of their labels."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitcls.errors import UserError
from vitcls.predictions.rows import Row

log = logging.getLogger(__name__)

_NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')  # of files, on one system or another


def check_folder(folder: Path, resumes: bool) -> None:
    """Refuse a folder that holds something, unless it is to be gone on with.

    Raises:
        UserError: says what it is.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--sort_into {str(folder)!r} is a file; give a folder that is new or empty.")
    if folder.is_dir() and not resumes and any(folder.iterdir()):
        raise UserError(
            f"--sort_into {str(folder)!r} holds something already; give a folder that is new or empty, or go on in it "
            "with --resume true."
        )


def check_apart(folder: Path, predicted: str | None) -> None:
    """Refuse a folder inside of the one whose images are predicted: next time its links would be images as well.

    Args:
        folder: of the links.
        predicted: `--data.predict`.

    Raises:
        UserError: names both.
    """
    if (
        predicted is not None
        and Path(predicted).is_dir()
        and folder.resolve().is_relative_to(Path(predicted).resolve())
    ):
        raise UserError(
            f"--sort_into {str(folder)!r} lies in --data.predict {predicted!r}, of which it would be a part the next "
            "time; give a folder beside it."
        )


def sort_into(folder: Path, rows: Iterable[Row], labels: Sequence[str]) -> None:
    """Link each file in `folder/label/`; of multilabel rows, under each label that is present.

    A link that is there already is left; a warning tells of what is of none of these rows. Of files with one name,
    those after the first get their id at its end.

    Args:
        folder: made if it is not there.
        rows: of files.
        labels: all that the rows may have.

    Raises:
        UserError: the folder cannot be written.
    """
    names = folder_names(labels)
    before = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    links = nowhere = 0
    try:
        for row in rows:
            found = [] if row.error else [row.label] if row.present is None else row.present
            nowhere += not found
            links += len(found)
            before -= {_link(Path(row.file).absolute(), folder / names[label], row.id) for label in found}
    except OSError as error:
        raise UserError(f"--sort_into {str(folder)!r} could not be filled ({error}).") from error
    if before:
        log.warning(
            "%s also holds %d files that are of no row of these predictions, such as %s: delete those that another "
            "predict left",
            folder,
            len(before),
            min(before),
        )
    log.info("%d links in %s%s", links, folder, f"; {nowhere} of the files have no label" if nowhere else "")


def folder_names(labels: Sequence[str]) -> dict[str, str]:
    """For each label the name of a folder of its own, on any system; most are the labels themselves."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for number, label in enumerate(labels):
        name = _NOT_IN_NAMES.sub("_", label).rstrip(". ") or "_"
        if name.startswith("."):
            name = f"_{name[1:]}"
        while name.casefold() in taken:
            name = f"{name}-{number}"
        taken.add(name.casefold())
        names[label] = name
    return names


def _link(file: Path, folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = file.name
    while not _linked(file, folder / name):
        name = f"{Path(name).stem}-{number}{file.suffix}"
    return folder / name


def _linked(file: Path, link: Path) -> bool:
    """Whether the link is there now, and is of that file."""
    if link.is_symlink() or link.exists():
        return link.exists() and link.samefile(file)
    try:
        link.symlink_to(file)
    except OSError:  # a disk or system without symbolic links
        os.link(file, link)
    return True
