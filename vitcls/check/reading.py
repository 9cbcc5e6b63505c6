"""Reads every image of a split once, and keeps a few facts about each."""

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset

from vitcls.check.signature import THUMB, digest, signature
from vitcls.data.decode import FORMATS, decode
from vitcls.data.rows import Images
from vitcls.errors import BadImageError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "other")
_BATCH = 16  # images that a worker reads before it answers

# 246 bytes an image; names are looked up in the source when they are needed.
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
    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[Facts, str]:
        facts = np.zeros((), FACTS)
        start = time.perf_counter()
        try:
            data = self._images.read(position)
            facts["file_bytes"] = len(data)
            pixels = decode(data)
        except (BadImageError, OSError) as error:
            facts["bad"] = True
            return facts, str(error)
        facts["seconds"] = time.perf_counter() - start
        facts["height"], facts["width"] = pixels.shape[:2]
        facts["mode"], facts["orientation"] = _header(data)
        facts["digest"] = np.void(digest(data))
        facts["hash"], facts["mirrored"], facts["thumb"] = signature(pixels)
        return facts, ""


def read_facts(images: Images, workers: int, advance: Callable[[int], None]) -> SplitFacts:
    """Read all images, in parallel.

    Args:
        images: to read.
        workers: processes that do.
        advance: told how many more images were read.
    """
    facts, causes = np.zeros(len(images), FACTS), {}
    position = 0
    for batch in _batches(images, workers):
        for one, cause in batch:
            facts[position] = one
            if cause:
                causes[position] = cause
            position += 1
        advance(len(batch))
    return SplitFacts(facts, causes)


def _batches(images: Images, workers: int) -> Iterator[list[tuple[Facts, str]]]:
    return iter(DataLoader(_FactRows(images), batch_size=_BATCH, num_workers=workers, collate_fn=list))


def _header(data: bytes) -> tuple[int, int]:
    """(mode, EXIF orientation) as the file says; decoding it again is not needed for that."""
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        mode = image.mode if image.mode in MODES else "other"
        try:
            orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # noqa: BLE001 - broken EXIF beside whole pixels, as in decode
            orientation = 1
    return MODES.index(mode), orientation if 1 <= orientation <= 8 else 1
