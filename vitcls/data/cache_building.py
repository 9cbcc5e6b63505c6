"""Making a cache: in parallel, whole or not at all, once for all processes that want it."""

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from vitcls.data.cache import (
    IMAGES,
    QUALITY,
    CachedImages,
    CacheIndex,
    CacheKind,
    Shrinking,
    cache_name,
    caches,
    shrinking_for,
)
from vitcls.data.dead_workers import WatchedLoader
from vitcls.data.decode import Pixels
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import Images, TableImages
from vitcls.data.seeding import seeded
from vitcls.data.splits import Split
from vitcls.data.workers import WorkerStart, reading
from vitcls.errors import BadImageError, UserError

log = logging.getLogger(__name__)

SAMPLE = 32  # images that the size is estimated from
A_DAY = 24 * 3600  # seconds; what is unfinished for longer was given up by a process that was killed
STALE = 60.0  # seconds without a sign of life after which another process' lock is taken over
POLL = 0.5  # seconds between two looks at it
_AT_ONCE = 8  # images that a worker hands over together: 2 MB of shared memory, of which containers give 64


class Shrunk(NamedTuple):
    """An image as the cache keeps it.

    Attributes:
        data: (bytes,) uint8; empty where it could not be read.
        shape: H, W of raw pixels; 0, 0 otherwise.
        cause: why it could not be decoded; empty where it could, or where the file could not be opened,
            which may be different next time.
    """

    data: NDArray[np.uint8]
    shape: tuple[int, int] = (0, 0)
    cause: str = ""


def split_images(split: Split, kind: CacheKind, spec: ImageSpec, workers: int) -> Images:
    """The images of a split, from a cache unless `kind` is `none`.

    Args:
        split: the rows.
        kind: ImageDataModule's `cache`.
        spec: the network's input.
        workers: processes that decode where a cache has to be built; 0: this one.

    Raises:
        UserError: there is no room for a cache.
    """
    return TableImages(split) if kind == "none" else cached(split, shrinking_for(kind, spec), workers)


def cached(split: Split, shrinking: Shrinking, workers: int, root: Path | None = None) -> CachedImages:
    """The cache of a split's images, built if there is none yet.

    Of several processes that want it, also on several machines with a common folder, one builds and the
    others wait. A collective of torch.distributed would time out after half an hour, so they look at the
    folder.

    Args:
        split: the rows.
        shrinking: how they are kept.
        workers: processes that decode; 0: this one.
        root: folder of the caches; not given: beside the cache of `datasets`.

    Raises:
        UserError: there is no room for it.
    """
    images = TableImages(split)
    root = caches() if root is None else root
    folder = root / cache_name(split, shrinking)
    try:
        root.mkdir(parents=True, exist_ok=True)
        while not folder.is_dir():
            with _lock(folder) as own:
                if own and not folder.is_dir():
                    _build(images, shrinking, workers, folder)
    except OSError as error:
        raise UserError(
            f"The cache {str(folder)!r} cannot be written ({error.strerror or error}); make room, set "
            "HF_DATASETS_CACHE to a folder with more, or say --data.cache none.",
            of_one_process=True,
        ) from error
    return CachedImages(images, folder)


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Reduce the shorter side to `side`, antialiased and bilinear; smaller images stay as they are.

    Args:
        pixels: (H, W, 3) uint8.
        side: in pixels.

    Returns:
        (h, w, 3) uint8 of the same aspect ratio, contiguous.
    """
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    size = [round(height * scale), round(width * scale)]
    small = tv.resize(torch.from_numpy(pixels).permute(2, 0, 1), size, antialias=True)
    return np.ascontiguousarray(small.permute(1, 2, 0).numpy())


def estimated_size(rows: "_ShrunkRows") -> int:
    """Bytes of all images, from a sample spread over them."""
    sample = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows)), dtype=int)
    return round(len(rows) * float(np.mean([len(rows[position].data) for position in sample.tolist()])))


class _ShrunkRows(Dataset[Shrunk]):
    def __init__(self, images: Images, shrinking: Shrinking) -> None:
        self.images = images
        self._shrinking = shrinking

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Shrunk:
        with reading(position):
            return self._shrunk(position)

    def _shrunk(self, position: int) -> Shrunk:
        try:
            pixels = shrink(self.images.pixels(position), self._shrinking.side)
        except BadImageError as error:
            return Shrunk(np.empty(0, np.uint8), cause=str(error))
        except OSError:
            return Shrunk(np.empty(0, np.uint8))
        if self._shrinking.kind == "raw":
            return Shrunk(pixels.reshape(-1), (pixels.shape[0], pixels.shape[1]))
        encoded = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="444")
        return Shrunk(np.frombuffer(encoded, np.uint8))


def _build(images: Images, shrinking: Shrinking, workers: int, folder: Path) -> None:
    """Write a cache beside its place, then move it there at once."""
    _remove_abandoned(folder.parent)
    rows = _ShrunkRows(images, shrinking)
    _announce(rows, shrinking, folder)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with seeded(0):  # a DataLoader draws a number, and the run that builds would start with other weights
            _write(rows, workers, unfinished, _lock_of(folder))
        unfinished.chmod(0o755)  # mkdtemp's is for its owner alone
        _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _announce(rows: _ShrunkRows, shrinking: Shrinking, folder: Path) -> None:
    size, free = estimated_size(rows), shutil.disk_usage(folder.parent).free
    log.info("cache (%s): %d images, about %s, in %s", shrinking.kind, len(rows), _in_words(size), folder)
    if size > free:
        raise UserError(
            f"The cache needs about {_in_words(size)}, but {str(folder.parent)!r} has {_in_words(free)} left; make "
            "room, set HF_DATASETS_CACHE to a folder with more, or say --data.cache none.",
            of_one_process=True,
        )


def _write(rows: _ShrunkRows, workers: int, folder: Path, lock: Path) -> None:
    index = CacheIndex()
    start = WorkerStart(workers)
    loader = WatchedLoader(rows, _AT_ONCE, num_workers=workers, collate_fn=_together, worker_init_fn=start)
    shown = sys.stderr.isatty()
    with (folder / IMAGES).open("wb") as file:
        for data, about in track(loader, "cache", console=Console(stderr=True), disable=not shown, transient=True):
            file.write(data.numpy())
            for size, shape, cause in about:
                index.add(size, shape, cause)
            with suppress(OSError):
                os.utime(lock)  # the sign of life
    index.write(folder)


def _together(items: list[Shrunk]) -> tuple[Tensor, list[tuple[int, tuple[int, int], str]]]:
    """One tensor, which travels in shared memory, and (bytes, shape, cause) of each image."""
    data = torch.from_numpy(np.concatenate([item.data for item in items]))
    return data, [(len(item.data), item.shape, item.cause) for item in items]


def _move(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.replace(folder)
    except OSError:
        # Another process was faster, which a lock that looked stale makes possible: its cache is as good.
        if not folder.is_dir():
            raise


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Take the right to build, or wait until it is free or has shown no life for long: whether it is ours."""
    lock = _lock_of(folder)
    try:
        lock.mkdir()
    except FileExistsError:
        _wait(lock)
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock.rmdir()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _wait(lock: Path) -> None:
    """Until the lock is gone; one that stays untouched is removed.

    The time is that of this process: clocks of machines that share a folder may differ.
    """
    log.info("waiting for another process, which builds the cache %s", lock.stem)
    touched, since = _touched(lock), time.monotonic()
    while touched is not None:
        time.sleep(POLL)
        before, touched = touched, _touched(lock)
        if touched != before:
            since = time.monotonic()
        elif time.monotonic() - since > STALE:
            with suppress(FileNotFoundError):
                lock.rmdir()


def _touched(lock: Path) -> int | None:
    try:
        return lock.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _remove_abandoned(root: Path) -> None:
    """What processes that were killed left behind."""
    for folder in root.glob("*.tmp"):
        with suppress(OSError):
            last = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - last > A_DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
