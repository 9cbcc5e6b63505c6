"""Rows of a split as training, evaluation and prediction take them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vitcls.data.decode import Pixels, decode
from vitcls.data.sampling import Draw
from vitcls.data.seeding import seeded
from vitcls.data.splits import Split
from vitcls.data.workers import reading
from vitcls.errors import BadImageError
from vitcls.types import BadImage, Sample, Targets

Instead = Literal["bad", "blank", "next"]


class Images(Protocol):
    """Images with names; what a new kind of source has to offer."""

    def __len__(self) -> int:
        """How many."""

    def pixels(self, position: int) -> Pixels:
        """The image at a position: (H, W, 3) uint8 RGB, upright.

        Raises:
            BadImageError: it cannot be decoded.
            OSError: its file cannot be read.
        """

    def name(self, position: int) -> str:
        """The file, or the row in words, for messages and predictions."""

    def id(self, position: int) -> int:
        """The row in its source."""


class Inputs(Images, Protocol):
    """What predict takes."""

    @property
    def are_files(self) -> bool:
        """Whether each is a file of its own, whose path is its name."""

    def digest(self) -> str:
        """Of the names, and of what lies in a table how long it is: others have another one. Pixels are not read."""


class TableImages:
    """The images of a split, read from its table.

    Args:
        split: the rows.
        files_have_names: whether an image that is a file of its own goes by its path alone.
    """

    def __init__(self, split: Split, files_have_names: bool = False) -> None:
        undecoded = datasets.Image(decode=False)
        column = split.table.select_columns([split.image_column])
        self._table = column.cast_column(split.image_column, undecoded).select(split.rows)
        self._split = split
        self._files_have_names = files_have_names

    def __len__(self) -> int:
        return len(self._split)

    def read(self, position: int) -> bytes:
        """The bytes of the image's file, from the table or from the file that it names."""
        image = self._table[position][self._split.image_column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise BadImageError("the row has no image")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def pixels(self, position: int) -> Pixels:
        """Decoded."""
        return decode(self.read(position))

    def name(self, position: int) -> str:
        """The path, if the table has one, and the row."""
        image = self._table[position][self._split.image_column] or {}
        stored = bool(image.get("bytes")) or not self._files_have_names
        return _name(image.get("path"), stored, self.id(position), self._split)

    def id(self, position: int) -> int:
        """The row of the table."""
        return int(self._split.rows[position])

    @property
    def are_files(self) -> bool:
        """Whether no row holds bytes, and all are known by their paths."""
        inside = (chunk.field("bytes") for chunk in self._chunks())
        return self._files_have_names and all(column.null_count == len(column) for column in inside)

    def digest(self) -> str:
        """Of the paths, and of how many bytes each row holds."""
        digest = hashlib.sha256(self._split.name.encode())
        for chunk in self._chunks():
            digest.update(repr(pc.binary_length(chunk.field("bytes")).to_pylist()).encode())
            digest.update(repr(chunk.field("path").to_pylist()).encode())
        return digest.hexdigest()

    def _chunks(self) -> Iterator[Any]:
        """The column of images, some rows at a time; a chunk's field is a view, so that no image is copied."""
        for batch in self._table.with_format("arrow").iter(1000):
            yield from batch[self._split.image_column].chunks


def names_and_sizes(split: Split, positions: NDArray[np.int64]) -> tuple[list[str], str]:
    """What tells the images at some positions apart, none of which is copied or decoded.

    Returns:
        what `TableImages(split, files_have_names=True)` calls them, and a digest of how many bytes each has: others of
        the same names hardly have the same sizes.
    """
    column = split.table.select_columns([split.image_column]).with_format("arrow")
    known: list[tuple[str | None, int | None]] = []
    for batch in column.iter(1000):
        for chunk in batch[split.image_column].chunks:  # a chunk's field is a view
            lengths = pc.binary_length(chunk.field("bytes")).to_pylist()
            known += zip(chunk.field("path").to_pylist(), lengths, strict=True)
    rows = split.rows[positions].tolist()
    names = [_name(path, length is not None, row, split) for row in rows for path, length in [known[row]]]
    sizes = [_size(path) if length is None else length for path, length in map(known.__getitem__, rows)]
    return names, hashlib.sha256(repr(sizes).encode()).hexdigest()


def _size(path: str | None) -> int:
    file = Path(path) if path else None
    return file.stat().st_size if file is not None and file.is_file() else -1


def _name(path: str | None, stored: bool, row: int, split: Split) -> str:
    if path and not stored:
        return path
    of_row = f"row {row} of {split.name}"
    return f"{path} ({of_row})" if path else of_row


class FileImages:
    """Image files.

    Their paths lie in one piece of memory: a million Path objects would be 440 MB, of which each worker that
    looks at them gets a copy of its own.
    """

    def __init__(self, files: Sequence[Path | str]) -> None:
        self._files = pa.array([os.fsencode(file) for file in files], pa.large_binary())

    def __len__(self) -> int:
        return len(self._files)

    def read(self, position: int) -> bytes:
        """The file's bytes."""
        return Path(self.name(position)).read_bytes()

    def pixels(self, position: int) -> Pixels:
        """Decoded."""
        return decode(self.read(position))

    def name(self, position: int) -> str:
        """The path."""
        return os.fsdecode(self._files[position].as_py())

    def id(self, position: int) -> int:
        """The place in the list."""
        return position

    @property
    def are_files(self) -> bool:
        """They are."""
        return True

    def digest(self) -> str:
        """Of the paths."""
        digest = hashlib.sha256()
        for position in range(len(self)):
            digest.update(os.fsencode(self.name(position)) + b"\0")
        return digest.hexdigest()


class ImageRows(Dataset[Sample | BadImage]):
    """Decoded and transformed images, at a position or for a Draw, whose seed decides its augmentation.

    Args:
        images: where they come from.
        transform: (3, H, W) uint8 -> (3, S, S) uint8.
        targets: (N,) int64 class indices, or (N, K) bool; None where there are none.
        instead: what comes out for an image that cannot be read: the `bad` image itself, a `blank`
            one, or the `next` image that can be read, which keeps training batches full.
    """

    def __init__(
        self,
        images: Images,
        transform: Callable[[Tensor], Tensor],
        targets: Targets | None = None,
        instead: Instead = "bad",
    ) -> None:
        self.images = images
        self._transform = transform
        self._targets = targets
        self._instead = instead

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Draw) -> Sample | BadImage:
        if not isinstance(index, Draw):
            return self._item(index)
        with seeded(index.seed):
            return self._item(index.position)

    def _item(self, position: int) -> Sample | BadImage:
        found = self._read(position)
        if isinstance(found, Sample) or self._instead == "bad":
            return found
        if self._instead == "blank":
            return self._sample(position, torch.zeros(3, 1, 1, dtype=torch.uint8))._replace(bad=(found,))
        return self._next_readable(position, found)

    def _next_readable(self, position: int, bad: BadImage) -> Sample | BadImage:
        for other in range(position + 1, position + len(self)):
            found = self._read(other % len(self))
            if isinstance(found, Sample):
                return found._replace(bad=(bad,))
        return bad  # none of them can be read

    def _read(self, position: int) -> Sample | BadImage:
        with reading(position):
            return self._decoded(position)

    def _decoded(self, position: int) -> Sample | BadImage:
        try:
            pixels = self.images.pixels(position)
        except (BadImageError, OSError) as error:
            return BadImage(self.images.name(position), self.images.id(position), str(error))
        return self._sample(position, torch.from_numpy(pixels).permute(2, 0, 1))

    def _sample(self, position: int, image: Tensor) -> Sample:
        return self.described(position, self._transform(image))

    def described(self, position: int, pixels: Tensor) -> Sample:
        """The sample of a position, whose pixels (or features) are known."""
        return Sample(pixels, self._label(position), self.images.id(position))

    def _label(self, position: int) -> int | Tensor:
        if self._targets is None:
            return -1
        target = self._targets[position]
        return torch.from_numpy(target).float() if target.ndim else int(target)
