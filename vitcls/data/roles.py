"""The split of each role (train, validation, test): opened once, its classes matched by name."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from vitcls.data import columns
from vitcls.data.choice import Source, SourceChoice
from vitcls.data.joined import JoinedSource
from vitcls.data.overlap import share_rows
from vitcls.data.splits import Split, fingerprint, matched
from vitcls.data.stream_classes import RowTarget, declared_classes
from vitcls.data.streamed import StreamedSplit
from vitcls.errors import UserError

log = logging.getLogger(__name__)


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
        form: in which the column of labels says them; set before anything is opened.
    """

    def __init__(self, sources: SourceChoice, rows: RowChoice) -> None:
        self._sources = sources
        self._rows = rows
        self._opened: dict[str, Split] = {}
        self.labels: list[str] | None = None
        self.form = columns.ONE_CLASS

    def fit(self) -> tuple[Split | StreamedSplit, Split]:
        """The rows to train and to validate on.

        Raises:
            UserError: the two share rows, or there is one class only.
        """
        chosen, own = self._sources.train(), self._sources.validation()
        self._warn_of_test_rows(own)
        if self._sources.streaming:
            return self._fit_streamed(chosen, own)
        train = self._open("train", *chosen)
        if own is None:
            train, validation = train.carved(self._rows.validation_fraction, self._rows.split_seed)
        else:
            validation = self._open("validation", *own)
            if share_rows(chosen, own) or validation.overlaps(train.record()):
                raise _trained_on(train, validation)
        _check_several(self.labels)
        return train.limited(self._rows.train_limit, self._rows.split_seed), self._eval_limited(validation)

    def _fit_streamed(self, chosen: tuple[Source, str], own: tuple[Source, str] | None) -> tuple[StreamedSplit, Split]:
        if own is None:
            raise UserError(
                "--data.streaming cannot keep a share of the training rows for validation; give a validation set with "
                "--data.validation_split, --data.validation_dir or --data.validation_files."
            )
        train, validation = self._stream(*chosen), self._open("validation", *own)
        if share_rows(chosen, own):
            raise _trained_on(train, validation)
        return train, self._eval_limited(validation)

    def _stream(self, source: Source, split: str) -> StreamedSplit:
        stream = source.stream(split)
        features, form = stream.table.features, self.form
        label = columns.label_column(features, self._sources.label_column, form)
        self.labels = self.labels or declared_classes(features[label], label)
        _check_several(self.labels)
        rows = self._sources.train_rows or stream.rows
        if rows is None:
            raise UserError(
                f"How many rows the stream of {split!r} has is not known from its metadata, and so neither is the "
                "number of steps; say it with --data.train_rows."
            )
        return StreamedSplit(
            name=split,
            stream=stream,
            rows=rows,
            image_column=columns.image_column(features, self._sources.image_column),
            label_column=label,
            target=RowTarget(features[label], form, self.labels, split),
        )

    def validation(self) -> Split:
        """The rows to validate on, without training."""
        own = self._sources.validation()
        return self.fit()[1] if own is None else self._eval_limited(self._open("validation", *own))

    def test(self) -> Split:
        """The rows to test on; they know whether some of them were trained on."""
        chosen = self._sources.test()
        split = self._eval_limited(self._open("test", *chosen))
        return replace(split, trained_on=self._sources.trains() and share_rows(self._sources.train(), chosen))

    def _warn_of_test_rows(self, validation: tuple[Source, str] | None) -> None:
        try:
            test = self._sources.test()
        except UserError:  # nothing to test on, which is no mistake yet
            return
        if validation is not None and share_rows(validation, test):
            log.warning(
                "%r is to validate and to test on: the best epoch is chosen by rows of the test set, and its test "
                "figures will be too good",
                validation[1],
            )

    def _eval_limited(self, split: Split) -> Split:
        return split.limited(self._rows.eval_limit, self._rows.split_seed)

    def _open(self, role: str, source: Source, split: str) -> Split:
        """The whole split of a role, opened once."""
        if role not in self._opened:
            self._opened[role] = self._read(role, source, split)
        return self._opened[role]

    def _read(self, role: str, source: Source, split: str) -> Split:
        if isinstance(source, JoinedSource):  # its columns have names and a form of their own
            table, image, label, form = source.load(split, self.form), None, None, replace(self.form, delimiter=None)
        else:
            table, form = source.load(split), self.form
            image, label = self._sources.image_column, self._sources.label_column
        if not len(table):
            raise UserError(f"The {role} split ({split!r}) has no rows; give data with images in it.")
        image_column = columns.image_column(table.features, image)
        found = columns.labelled(table, columns.label_column(table.features, label, form), role, form)
        labels = self.labels or found.names
        if role == "train":
            self.labels = labels
        return Split(
            name=split,
            table=table,
            rows=np.arange(len(table)),
            targets=matched(found.names, found.targets, labels, role),
            image_column=image_column,
            fingerprint=fingerprint(table, image_column, found.names, found.targets),
        )


def _check_several(labels: list[str] | None) -> None:
    if len(labels or ()) < 2:
        raise UserError(f"The training data has one class only ({labels}); a classifier needs two or more.")


def _trained_on(train: Split | StreamedSplit, validation: Split) -> UserError:
    return UserError(
        f"Rows of {train.name!r} would be trained on and validated on ({validation.name!r}); the best epoch "
        "would be chosen by what was learned by heart. Give splits without common rows."
    )
