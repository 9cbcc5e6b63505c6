"""The split of each role (train, validation, test): opened once, its classes matched by name."""

from dataclasses import dataclass

import numpy as np

from vitcls.data import columns
from vitcls.data.choice import Source, SourceChoice
from vitcls.data.joined import JoinedSource
from vitcls.data.sources import DatasetSource
from vitcls.data.splits import Split, fingerprint, matched
from vitcls.errors import UserError


@dataclass(frozen=True)
class RowChoice:
    """What the user said about rows; the attributes are ImageDataModule's arguments of the same names."""

    validation_fraction: float
    split_seed: int
    train_limit: int | None
    eval_limit: int | None


class Roles:
    """Opens splits.

    Args:
        sources: where each role's rows come from.
        rows: which of them are taken.

    Attributes:
        labels: class names in output order; the training data's, unless set before.
    """

    def __init__(self, sources: SourceChoice, rows: RowChoice) -> None:
        self._sources = sources
        self._rows = rows
        self._opened: dict[str, Split] = {}
        self.labels: list[str] | None = None

    def fit(self) -> tuple[Split, Split]:
        """The rows to train and to validate on.

        Raises:
            UserError: the two share rows, or there is one class only.
        """
        source, expression = self._sources.train()
        train, own = self._open("train", source, expression), self._sources.validation()
        if own is None:
            train, validation = train.carved(self._rows.validation_fraction, self._rows.split_seed)
        else:
            validation = self._open("validation", *own)
            shared = source is own[0] and isinstance(source, DatasetSource) and source.overlap(expression, own[1])
            if shared or validation.overlaps(train.record()):
                raise _trained_on(train, validation)
        if len(self.labels or ()) < 2:
            raise UserError(f"The training data has one class only ({self.labels}); a classifier needs two or more.")
        return train.limited(self._rows.train_limit, self._rows.split_seed), self._eval_limited(validation)

    def validation(self) -> Split:
        """The rows to validate on, without training."""
        own = self._sources.validation()
        return self.fit()[1] if own is None else self._eval_limited(self._open("validation", *own))

    def test(self) -> Split:
        """The rows to test on."""
        return self._eval_limited(self._open("test", *self._sources.test()))

    def _eval_limited(self, split: Split) -> Split:
        return split.limited(self._rows.eval_limit, self._rows.split_seed)

    def _open(self, role: str, source: Source, split: str) -> Split:
        """The whole split of a role, opened once."""
        if role not in self._opened:
            self._opened[role] = self._read(role, source, split)
        return self._opened[role]

    def _read(self, role: str, source: Source, split: str) -> Split:
        table = source.load(split)
        if not len(table):
            raise UserError(f"The {role} split ({split!r}) has no rows; give data with images in it.")
        joined = isinstance(source, JoinedSource)  # its columns have names of their own
        image_column = columns.image_column(table.features, None if joined else self._sources.image_column)
        label_column = columns.label_column(table.features, None if joined else self._sources.label_column)
        found = columns.labelled(table, label_column, where=role)
        labels = self.labels or found.names
        if role == "train":
            self.labels = labels
        return Split(
            name=split,
            table=table,
            rows=np.arange(len(table)),
            class_ids=matched(found.names, found.ids, labels, role),
            image_column=image_column,
            fingerprint=fingerprint(table, image_column, found.names, found.ids),
        )


def _trained_on(train: Split, validation: Split) -> UserError:
    return UserError(
        f"Rows of {train.name!r} would be trained on and validated on ({validation.name!r}); the best epoch "
        "would be chosen by what was learned by heart. Give splits without common rows."
    )
