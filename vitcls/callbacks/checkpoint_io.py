"""Checkpoint files that are whole or not there: written aside, then put in place."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

from vitcls.runs import LAST, PART, PREVIOUS


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name in its folder, brings it to the disk, and only then renames it.

    Lightning 2.6 writes to the system's folder for temporary files, and what moves the file from there to another
    disk copies it over the old one: a crash meanwhile leaves half a checkpoint and none before it. It also never
    waits for the disk (fsync), so that after a loss of power a file may be there without its content.

    The last.ckpt before a new one is kept as previous.ckpt.

    A process that fails here alone would leave the others waiting for it, so a file that cannot be written is noted
    and not raised.

    Attributes:
        unwritten: why a file could not be written, in a sentence; empty where all were.
    """

    unwritten = ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning's; a local file that is there before stays whole until the new one is."""
        if not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        part = file.with_name(f".{file.name}{PART}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, part)
            if file.name == LAST and file.is_file():
                file.replace(file.with_name(PREVIOUS))
            part.replace(file)
            _bring_to_disk(file.parent)
        except (OSError, RuntimeError) as error:
            self.unwritten = _sentence(file, _cause(error))
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed while it wrote a checkpoint left in a folder."""
    for part in folder.glob(f".*.ckpt{PART}"):
        part.unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    with file.open("wb") as stream:
        torch.save(checkpoint, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _bring_to_disk(folder: Path) -> None:
    """Make the renaming last; not every file system can be asked for it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(error: Exception) -> OSError:
    """What the system said: torch hides it behind an error of its archive.

    Raises:
        Exception: the same again, where it was no fault of the system.
    """
    for link in _chain(error):
        if isinstance(link, OSError):
            return link
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(file: Path, cause: OSError) -> str:
    older = sorted(other.name for other in file.parent.glob("*.ckpt"))
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    todo = "make room" if full else "mend that"
    kept = f"{', '.join(older)} there: whole, of earlier steps" if older else "no checkpoint is there yet"
    return (
        f"The checkpoint {file} could not be written ({cause.strerror}); {kept}. First {todo}"
        + (f", then go on with: python -m vitcls fit --ckpt_path {file.parent}" if older else ", then start anew")
        + "."
    )
