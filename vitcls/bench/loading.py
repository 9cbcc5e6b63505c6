"""Images a second of one thread, from file to network input, by the usual way and by ours."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms

from vitcls.data.cache import CacheKind, shrinking_for
from vitcls.data.cache_building import cached
from vitcls.data.decode import decode
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import ImageRows, Images, TableImages
from vitcls.data.sampling import Draw
from vitcls.data.splits import Split
from vitcls.data.transforms import Transform, train_transform
from vitcls.types import Sample

EXAMPLE, OURS = "example", "ours"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_BATCH = 32  # images that normalising is timed with
Load = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Of one way to load images.

    Attributes:
        name: of the way.
        best: images a second in the fastest round.
        median: images a second in the middle round.
        ratio: median over the rounds of its speed over the example's in the same round.
    """

    name: str
    best: float
    median: float
    ratio: float


@dataclass(frozen=True)
class Difference:
    """Of our pixels to Pillow's.

    Attributes:
        largest: of any value, in 0..255.
        share: of the values that differ at all, in 0..1.
    """

    largest: int
    share: float


@dataclass(frozen=True)
class Photos:
    """The images that are loaded.

    Attributes:
        split: their rows; all can be decoded.
        size: mean bytes of a file.
        shape: mean height and width, pixels.
    """

    split: Split
    size: float
    shape: tuple[float, float]


def readable_photos(split: Split, most: int) -> Photos:
    """At most `most` images spread over a split, without those that cannot be decoded; none may be left."""
    chosen = split.limited(most, seed=0)
    images, rows = TableImages(chosen), ImageRows(TableImages(chosen), lambda image: image)
    good = [i for i in range(len(rows)) if isinstance(rows[i], Sample)]
    shapes = [images.pixels(i).shape[:2] for i in good]
    height, width = np.mean(shapes, axis=0) if good else (0, 0)
    size = float(np.mean([len(images.read(i)) for i in good])) if good else 0.0
    kept = Split(**{**vars(chosen), "rows": chosen.rows[good], "targets": chosen.targets[good]})
    return Photos(kept, size, (float(height), float(width)))


def time_loading(photos: Photos, side: int, rounds: int, folder: Path) -> list[Timing]:
    """Time all ways in turn, in one thread, with the files in the page cache.

    Args:
        photos: what to load.
        side: S of the network's input, pixels.
        rounds: how often each way loads all of them; the ways alternate, so that what else the
            machine does falls on all of them.
        folder: for the caches.
    """
    ways = _ways(photos.split, _spec(side), folder)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with _one_thread():
        for load in ways.values():
            load(0)
        for _ in range(rounds):
            for name, load in ways.items():
                speeds[name].append(_speed(load, len(photos.split)))
    return [_timing(name, found, speeds[EXAMPLE]) for name, found in speeds.items()]


def normalising_time(side: int) -> float:
    """Seconds for each image that normalising a batch takes in one thread of the CPU.

    The example does it while it loads; here it waits for the device, where it costs next to nothing if
    that is a GPU.
    """
    spec, batch = _spec(side), torch.zeros(_BATCH, side, side, 3, dtype=torch.uint8).movedim(-1, -3)
    with _one_thread():
        return min(1 / _speed(lambda _: spec.normalise(batch), 5) for _ in range(3)) / _BATCH


def decoding_difference(photos: Photos) -> Difference:
    """Decoded by us against decoded by Pillow."""
    images = TableImages(photos.split)
    pairs = ((np.asarray(_pillow(images.read(i))), decode(images.read(i))) for i in range(len(images)))
    return _difference(pairs)


def cropping_difference(photos: Photos, side: int) -> Difference:
    """A random crop, bilinear, decoded and resized by us against the same by Pillow."""
    images, ours = TableImages(photos.split), _light(_spec(side))
    theirs = transforms.Compose([transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip()])

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position in range(len(images)):
            torch.manual_seed(position)
            expected = np.asarray(theirs(_pillow(images.read(position))))
            torch.manual_seed(position)
            yield expected, ours(_tensor(images, position)).permute(1, 2, 0).numpy()

    return _difference(pairs())


def _ways(split: Split, spec: ImageSpec, folder: Path) -> dict[str, Load]:
    images, transform = TableImages(split), _light(spec)
    ways = {EXAMPLE: _example(images, spec.size), OURS: _ours(images, transform)}
    kinds: tuple[CacheKind, ...] = ("jpeg", "raw")
    for kind in kinds:
        kept = cached(split, shrinking_for(kind, spec), workers=0, root=folder)
        ways[f"{OURS}, {kind} cache"] = _ours(kept, transform)
    return ways


def _example(images: TableImages, side: int) -> Load:
    """As published examples of image classification load: Pillow, torchvision, floats."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(side),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )
    return lambda position: transform(Image.open(BytesIO(images.read(position))).convert("RGB"))


def _ours(images: Images, transform: Transform) -> Load:
    rows = ImageRows(images, transform)
    return lambda position: rows[Draw(position, seed=position)]


def _light(spec: ImageSpec) -> Transform:
    """With the crops and the flips of the example."""
    return train_transform(spec=spec, augment="light", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)


def _spec(side: int) -> ImageSpec:
    return ImageSpec(side, side, "squash", "bilinear", _MEAN, _STD)


def _tensor(images: TableImages, position: int) -> Tensor:
    return torch.from_numpy(images.pixels(position)).permute(2, 0, 1)


def _pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")


def _difference(pairs: Iterator[tuple[np.ndarray, np.ndarray]] | Iterator) -> Difference:
    largest, differing, values = 0, 0, 0
    for expected, found in pairs:
        difference = np.abs(expected.astype(np.int16) - found)
        largest = max(largest, int(difference.max()))
        differing += int(np.count_nonzero(difference))
        values += difference.size
    return Difference(largest, differing / max(1, values))


def _timing(name: str, speeds: list[float], example: list[float]) -> Timing:
    ratios = [own / theirs for own, theirs in zip(speeds, example, strict=True)]
    return Timing(name, max(speeds), statistics.median(speeds), statistics.median(ratios))


def _speed(load: Load, count: int) -> float:
    """Images a second, of positions 0 to `count`."""
    start = time.perf_counter()
    for position in range(count):
        load(position)
    return count / (time.perf_counter() - start)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
