"""What the frozen part of a network makes of each image, computed once before the training."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitcls.data.collate import collate
from vitcls.data.rows import ImageRows
from vitcls.data.sampling import Draw
from vitcls.types import BadImage, Batch, Sample

log = logging.getLogger(__name__)

NO_PIXELS = torch.empty(0)


class Features(NamedTuple):
    """The features of the rows of a split, seen once.

    Attributes:
        values: (N, F) or (N, V, F) float, in memory that processes share; zeros where an image is bad.
        otherwise: by position, the rows that are not what their split says: bad images, and those that stand in
            the place of one, without their pixels.
    """

    values: Tensor
    otherwise: dict[int, Sample | BadImage]

    @property
    def bad(self) -> list[BadImage]:
        """The images that could not be decoded."""
        rows = self.otherwise.values()
        return [bad for row in rows for bad in ([row] if isinstance(row, BadImage) else row.bad)]


class NumberedRows(Dataset[tuple[int, Sample | BadImage]]):
    """Rows with their positions."""

    def __init__(self, rows: ImageRows) -> None:
        self._rows = rows

    def __getitem__(self, index: int | Draw) -> tuple[int, Sample | BadImage]:
        return (index.position if isinstance(index, Draw) else index), self._rows[index]


class NumberedBatch(NamedTuple):
    """A batch, the positions (B,) of its images, and the rows that are not what their split says."""

    batch: Batch
    positions: Tensor
    otherwise: dict[int, Sample | BadImage]


def numbered_collate(items: Sequence[tuple[int, Sample | BadImage]]) -> NumberedBatch:
    """What `collate` makes of the rows, and which rows they are."""
    positions = [position for position, item in items if isinstance(item, Sample)]
    odd = {n: _without_pixels(item) for n, item in items if isinstance(item, BadImage) or item.bad}
    return NumberedBatch(collate([item for _, item in items]), torch.tensor(positions, dtype=torch.int64), odd)


def _without_pixels(item: Sample | BadImage) -> Sample | BadImage:
    return item._replace(pixels=NO_PIXELS) if isinstance(item, Sample) else item


def extracted(loader: DataLoader, rows: int, features_of: Callable[[Batch], Tensor], told: str) -> Features:
    """The features of all rows that a loader gives.

    Args:
        loader: of NumberedBatch, each row once.
        rows: N.
        features_of: batch -> (B, F) or (B, V, F) float.
        told: what the progress bar says.
    """
    values: Tensor | None = None
    otherwise: dict[int, Sample | BadImage] = {}
    shown = sys.stderr.isatty()
    for batch, positions, odd in track(loader, told, console=Console(stderr=True), disable=not shown, transient=True):
        otherwise |= odd
        if len(positions):
            found = features_of(batch).cpu()
            if values is None:
                values = found.new_zeros((rows, *found.shape[1:])).share_memory_()
            values[positions] = found
    return Features(torch.zeros(rows, 1) if values is None else values, otherwise)


class FeatureRows(Dataset[Sample | BadImage]):
    """Rows whose pixels are features where these are there, and images where they are not.

    A Draw that wants features takes one of the views by its seed; a plain position takes the only one.

    Args:
        rows: the images.
        views: the features of their views.
    """

    def __init__(self, rows: ImageRows, views: Sequence[Features]) -> None:
        self._rows = rows
        self._views = views

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | Draw) -> Sample | BadImage:
        if not isinstance(index, Draw):
            return self._item(index, self._views[0])
        if not index.of_features:
            return self._rows[index]
        return self._item(index.position, self._views[index.seed % len(self._views)])

    def _item(self, position: int, view: Features) -> Sample | BadImage:
        odd = view.otherwise.get(position)
        if isinstance(odd, BadImage):
            return odd
        features = view.values[position]
        return self._rows.described(position, features) if odd is None else odd._replace(pixels=features)


def draws_of_view(rows: int, view: int, seed: int) -> list[Draw]:
    """Each row once, in order, with the seed of its augmentation in this view.

    Args:
        rows: N.
        view: its number.
        seed: the run's.
    """
    seeds = np.random.default_rng((seed, view)).integers(2**63, size=rows)
    return [Draw(position, int(drawn)) for position, drawn in enumerate(seeds)]
