"""Images shrunk once to what the largest crop needs, kept beside the cache of `datasets`."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vitcls.data.decode import Pixels
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import Images
from vitcls.data.splits import Split
from vitcls.errors import BadImageError
from vitcls.input_spec import CENTRE_CROP_SHARE

CacheKind = Literal["none", "jpeg", "raw"]
FORMAT = 1  # of the files below; another number leaves older caches alone and builds new ones
QUALITY = 90  # of the JPEGs, with full colour resolution; a photo of 256 px takes 26 kB, its raw pixels 197 kB
IMAGES = "images.bin"
INDEX = "index.npz"
CAUSES = "causes.json"


@dataclass(frozen=True)
class Shrinking:
    """How images are kept.

    Attributes:
        kind: `jpeg` or `raw`.
        side: length that a longer shorter side is reduced to, pixels; nothing is ever enlarged.
    """

    kind: CacheKind
    side: int


class CachedImages:
    """The images of a cache, with the names and rows of those that it was made from.

    The pixels are not those of the original files: they are shrunk, and `jpeg` is lossy. So figures
    with and without a cache differ slightly, those of validation and test as well.

    Args:
        images: what it was made from.
        folder: the cache.
    """

    def __init__(self, images: Images, folder: Path) -> None:
        self._images = images
        self._file = folder / IMAGES
        with np.load(folder / INDEX) as index:
            self._starts: NDArray[np.int64] = index["starts"]  # (N + 1,) in bytes
            self._shapes: NDArray[np.int32] = index["shapes"]  # (N, 2) H, W; 0, 0 for a JPEG
        causes = json.loads((folder / CAUSES).read_text(encoding="utf-8"))
        self._causes = {int(position): cause for position, cause in causes.items()}
        self._mapped: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # pickled, a memory map is a copy of the whole file

    def pixels(self, position: int) -> Pixels:
        """The shrunk image; of a file that could not be opened when the cache was made, the original.

        Raises:
            BadImageError: it could not be decoded when the cache was made; the cause is that of then.
        """
        if position in self._causes:
            raise BadImageError(self._causes[position])
        start, end = self._starts[position], self._starts[position + 1]
        if start == end:
            return self._images.pixels(position)
        # A copy: it takes 5 us, and what is done to it stays out of the map.
        stored = np.array(self._bytes[start:end])
        height, width = self._shapes[position]
        return stored.reshape(height, width, 3) if height else simplejpeg.decode_jpeg(stored, colorspace="RGB")

    def name(self, position: int) -> str:
        """Of the original."""
        return self._images.name(position)

    def id(self, position: int) -> int:
        """Of the original."""
        return self._images.id(position)

    @property
    def _bytes(self) -> NDArray[np.uint8]:
        """The file, mapped where it is first read, so that each worker has its own map of the same pages."""
        if self._mapped is None:
            # An empty file, where all images are bad, cannot be mapped; then nothing asks for its bytes.
            self._mapped = np.asarray(np.memmap(self._file, dtype=np.uint8, mode="r"))
        return self._mapped


@dataclass
class CacheIndex:
    """Where each image lies in the file of a cache, as it grows.

    Attributes:
        starts: where each begins, and at last where the file ends, bytes.
        shapes: H, W of each; 0, 0 for a JPEG.
        causes: of the images that could not be decoded, by position.
    """

    starts: list[int] = field(default_factory=lambda: [0])
    shapes: list[tuple[int, int]] = field(default_factory=list)
    causes: dict[int, str] = field(default_factory=dict)

    def add(self, size: int, shape: tuple[int, int], cause: str) -> None:
        """Take the next image in: its bytes, H and W, and why it could not be decoded, if so."""
        if cause:
            self.causes[len(self.shapes)] = cause
        self.starts.append(self.starts[-1] + size)
        self.shapes.append(shape)

    def write(self, folder: Path) -> None:
        """Write it beside the images."""
        shapes = np.array(self.shapes, dtype=np.int32).reshape(-1, 2)
        np.savez(folder / INDEX, starts=np.array(self.starts, dtype=np.int64), shapes=shapes)
        (folder / CAUSES).write_text(json.dumps(self.causes), encoding="utf-8")


def shrinking_for(kind: CacheKind, spec: ImageSpec) -> Shrinking:
    """For a network's input: S / 0.875, which a centre crop needs, or more where the evaluation resizes to more."""
    return Shrinking(kind, max(round(spec.size / CENTRE_CROP_SHARE), spec.resize_to))


def caches() -> Path:
    """The folder of all caches, beside that of `datasets` (moved by HF_DATASETS_CACHE or HF_HOME)."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "vitcls"


def cache_name(split: Split, shrinking: Shrinking) -> str:
    """The name of the cache of a split's rows: another one when anything that it is made from changes."""
    parts = (FORMAT, shrinking.kind, shrinking.side, QUALITY, split.fingerprint)
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(split.rows.tobytes())
    _add_contents(digest, split)
    return f"{shrinking.kind}-{shrinking.side}-{digest.hexdigest()[:20]}"


def _add_contents(digest: Any, split: Split) -> None:
    """Paths, sizes and times of images that are files; of embedded ones the table's own fingerprint."""
    embedded = False
    column = split.table.select_columns([split.image_column]).select(split.rows).with_format("arrow")
    for batch in column.iter(1000):
        for chunk in batch[split.image_column].chunks:  # its fields are views: no image is copied
            inside = chunk.field("bytes").is_valid().to_pylist()
            embedded = embedded or any(inside)
            paths = chunk.field("path").to_pylist()
            files = [_stamp(path) for path, has in zip(paths, inside, strict=True) if path and not has]
            digest.update("".join(files).encode())
    if embedded:
        digest.update(split.table._fingerprint.encode())


def _stamp(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError:
        return f"{path} is missing\n"
    return f"{path} {found.st_size} {found.st_mtime_ns}\n"
