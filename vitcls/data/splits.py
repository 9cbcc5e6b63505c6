"""Which rows are trained, validated and tested on: chosen by seed, kept for the record."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
from numpy.typing import NDArray

from vitcls.data.iterative import iterative_sample
from vitcls.errors import UserError, listing
from vitcls.types import Targets


@dataclass(frozen=True)
class Split:
    """Some rows of a table, with their classes.

    Attributes:
        name: what it is for and where it comes from, such as `validation (from train)`.
        table: the whole table, images not decoded.
        rows: (N,) int64 rows of the table, ascending.
        targets: (N,) int64 indices into the model's labels; of multilabel data (N, K) bool.
        image_column: where the images are.
        fingerprint: of the whole table, from `fingerprint`.
        trained_on: whether the user's words alone say that rows of it are trained on.
    """

    name: str
    table: datasets.Dataset
    rows: NDArray[np.int64]
    targets: Targets
    image_column: str
    fingerprint: str
    trained_on: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes_seen(self) -> int:
        """How many of the classes occur in its rows."""
        return len(occurring(self.targets))

    def described(self, labels: Sequence[str]) -> str:
        """How much it holds, for a person."""
        return f"{len(self)} images, {self.classes_seen} of {len(labels)} classes"

    def classes_of(self, position: int) -> list[int]:
        """The class of a row, or of multilabel data its classes, which may be none."""
        target = self.targets[position]
        return np.flatnonzero(target).tolist() if self.targets.ndim == 2 else [int(target)]

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """(K,) rows of each of the K classes."""
        return self.targets.sum(axis=0) if self.targets.ndim == 2 else np.bincount(self.targets, minlength=classes)

    def carved(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Split off a stratified share: (what remains, the share).

        Raises:
            UserError: the share would be empty.
        """
        share = _sample(self.targets, round(fraction * len(self)), seed)
        if not len(share):
            raise UserError(
                f"--data.validation_fraction {fraction} of {len(self)} images leaves nothing to "
                "validate on; give a larger fraction or a validation set of its own."
            )
        rest = np.setdiff1d(np.arange(len(self)), share)
        return self._only(rest, self.name), self._only(share, f"validation (from {self.name})")

    def limited(self, most: int | None, seed: int) -> Self:
        """A stratified sub-set of at most `most` rows."""
        if most is None or most >= len(self):
            return self
        return self._only(_sample(self.targets, most, seed), self.name)

    def overlaps(self, recorded: Mapping[str, Any]) -> bool:
        """Whether it holds rows of a split of which this is the record.

        Rows are compared by place in the same table, not by picture: copies of photos under other
        names are not found.
        """
        return self.fingerprint == recorded["fingerprint"] and not set(self.rows.tolist()).isdisjoint(recorded["rows"])

    def record(self) -> dict[str, Any]:
        """What `splits.json` keeps of it."""
        return {"source": self.name, "fingerprint": self.fingerprint, "rows": self.rows.tolist()}

    def _only(self, positions: NDArray[np.int64], name: str) -> Self:
        return type(self)(
            name, self.table, self.rows[positions], self.targets[positions], self.image_column, self.fingerprint
        )


def occurring(targets: Targets) -> NDArray[np.int64]:
    """Indices of the classes that occur, ascending."""
    return np.flatnonzero(targets.any(axis=0)) if targets.ndim == 2 else np.unique(targets)


def stratified_sample(class_ids: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` positions so that each class keeps its share, to within one row.

    Each class gives its share rounded down; the rows that are still missing come from the classes
    with the largest remainders (Hamilton's method), last from those that would be left with none. A
    class of a single row gives it only where the others cannot make up the count.

    Args:
        class_ids: (N,) class of each row.
        count: how many, 0..N.
        seed: of the choice; the same seed gives the same rows.

    Returns:
        (count,) positions, ascending.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(class_ids))
    _, sizes = np.unique(class_ids, return_counts=True)
    weights = sizes * (sizes > 1) if count <= sizes[sizes > 1].sum() else sizes
    shares = weights * count / max(1, weights.sum())
    takes = np.floor(shares).astype(np.int64)
    order = np.lexsort((random.random(len(sizes)), takes - shares, takes + 1 >= sizes))
    takes[order[: count - takes.sum()]] += 1
    by_class = np.split(shuffled[np.argsort(class_ids[shuffled], kind="stable")], np.cumsum(sizes)[:-1])
    chosen = [members[:take] for members, take in zip(by_class, takes, strict=True)] if len(class_ids) else []
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def fingerprint(table: datasets.Dataset, image_column: str, names: list[str], targets: Targets) -> str:
    """A digest of the rows' classes and files: another order, row or label gives another digest.

    Pixels are not read (at 100,000 photos that would cost minutes), and of a path only the file's
    name, so that the same folder at another place is the same data.
    """
    digest = hashlib.sha256(repr((len(table), list(table.features), names)).encode())
    digest.update(targets.tobytes())
    for batch in table.select_columns([image_column]).with_format("arrow").iter(1000):
        for chunk in batch[image_column].chunks:  # a chunk's field is a view: no image is copied
            paths = chunk.field("path").to_pylist()
            digest.update("".join(f"{Path(path or '').name}\n" for path in paths).encode())
    return digest.hexdigest()


def matched(names: list[str], targets: Targets, labels: list[str], where: str) -> Targets:
    """Targets of a table -> targets in the model's labels, by name.

    Args:
        names: the table's classes.
        targets: (N,) indices into `names`, or (N, its classes) bool.
        labels: the model's classes, in output order.
        where: the split, for messages.

    Raises:
        UserError: a class that occurs in the rows is none of the labels.
    """
    index = {label: i for i, label in enumerate(labels)}
    used = occurring(targets)
    unknown = [names[i] for i in used if names[i] not in index]
    if unknown:
        raise UserError(
            f"The {where} data has classes that the model does not know ({len(unknown)}): "
            f"{listing(unknown, 8)}. The model's {len(labels)} classes: {listing(labels, 8)}. Give data "
            "with the model's classes, or train a model on these."
        )
    to_label = np.array([index.get(name, -1) for name in names], dtype=np.int64)
    if targets.ndim == 1:
        return to_label[targets]
    found = np.zeros((len(targets), len(labels)), dtype=np.bool_)
    found[:, to_label[used]] = targets[:, used]
    return found


def _sample(targets: Targets, count: int, seed: int) -> NDArray[np.int64]:
    """(count,) positions, ascending, with the classes in the proportions of all."""
    if targets.ndim == 2:
        return iterative_sample(targets.astype(np.bool_, copy=False), count, seed)
    return stratified_sample(targets.astype(np.int64, copy=False), count, seed)
