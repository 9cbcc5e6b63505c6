"""Reads every image of a split once, and keeps a few facts about each."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vitcls.check.signature import THUMB, digest, signature
from vitcls.data.dead_workers import WatchedLoader
from vitcls.data.decode import decode_file
from vitcls.data.rows import FileImages, TableImages
from vitcls.data.workers import WorkerStart, reading
from vitcls.errors import BadImageError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "other")
BATCH = 16  # images that a worker reads before it answers

# 243 bytes an image; names are looked up in the source when they are needed.
FACTS = np.dtype(
    [
        ("bad", "?"),
        ("width", "u4"),
        ("height", "u4"),
        ("mode", "u1"),
        ("orientation", "u1"),
        ("file_bytes", "u4"),
        ("seconds", "f4"),
        ("digest", "V16"),
        ("hash", "u8"),
        ("mirrored", "u8"),
        ("thumb", "u1", (THUMB, THUMB, 3)),
    ]
)
Facts = NDArray[np.void]


class SplitFacts(NamedTuple):
    """What reading a split told.

    Attributes:
        facts: (N,) of FACTS; width, height (upright, pixels), mode (index into MODES), EXIF orientation,
            file_bytes, seconds (reading and decoding), digest, hashes and thumbnail. Of bad images only
            `bad` and `file_bytes` mean something.
        causes: why, by position, of the bad images.
    """

    facts: Facts
    causes: dict[int, str]


class _FactRows(Dataset):
    def __init__(self, images: TableImages | FileImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[tuple, str]:
        with reading(position):
            return self._read(position)

    def _read(self, position: int) -> tuple[tuple, str]:
        start, data = time.perf_counter(), b""
        try:
            data = self.images.read(position)
            pixels, mode, orientation = decode_file(data)
        except (BadImageError, OSError) as error:
            return (True, 0, 0, 0, 0, len(data), 0, b"", 0, 0, 0), str(error)
        seconds = time.perf_counter() - start
        height, width = pixels.shape[:2]
        stored = MODES.index(mode if mode in MODES else "other")
        said = (False, width, height, stored, orientation, len(data), seconds)
        return (*said, digest(data), *signature(pixels)), ""


def read_facts(images: TableImages | FileImages, workers: int, advance: Callable[[int], None]) -> SplitFacts:
    """Read all images, in parallel.

    Args:
        images: to read.
        workers: processes that do.
        advance: told how many more images were read.
    """
    facts = np.zeros(len(images), FACTS)
    causes: dict[int, str] = {}
    position = 0
    for batch, why in _batches(images, workers):
        facts[position : position + len(batch)] = batch
        causes |= {position + place: cause for place, cause in enumerate(why) if cause}
        position += len(batch)
        advance(len(batch))
    return SplitFacts(facts, causes)


def _batches(images: TableImages | FileImages, workers: int) -> Iterator[tuple[Facts, list[str]]]:
    rows = _FactRows(images)
    return iter(
        WatchedLoader(
            rows,
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=_together,
            worker_init_fn=WorkerStart(workers),
        )
    )


def _together(items: list[tuple[tuple, str]]) -> tuple[Facts, list[str]]:
    """One array for a batch: it travels between processes much faster than many."""
    return np.array([facts for facts, _ in items], FACTS), [cause for _, cause in items]
