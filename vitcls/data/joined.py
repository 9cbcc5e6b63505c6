"""Several sources as one."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from vitcls.data import columns
from vitcls.data.label_form import LabelForm
from vitcls.data.sources import DatasetSource, FolderSource, no_stream
from vitcls.data.streams import Stream
from vitcls.data.tables import TableSource, stream_of
from vitcls.errors import UserError

OneSource = DatasetSource | FolderSource | TableSource


@dataclass(frozen=True)
class JoinedSource:
    """The rows of several sources, one after the other; their classes are joined by name.

    Attributes:
        sources: at least two.
        image_column: as for a single source; of those sources that have it.
        label_column: the same.
    """

    sources: tuple[OneSource, ...]
    image_column: str | None = None
    label_column: str | None = None

    def load(self, split: str, form: LabelForm = columns.ONE_CLASS) -> datasets.Dataset:
        """Columns `image` (Image) and `label` (string; of several classes a list of strings).

        Raises:
            UserError: one of the sources cannot be read, or its columns are ambiguous.
        """
        tables = [source.load(split) for source in self.sources]
        for kind, name in (("image", self.image_column), ("label", self.label_column)):
            if name is not None and not any(name in table.features for table in tables):
                raise UserError(f"--data.{kind}_column names {name!r}, which none of the {len(tables)} sources has.")
        return datasets.concatenate_datasets([self._uniform(table, split, form) for table in tables])

    def stream(self, split: str) -> Stream:
        """The rows of parquet files, read while they are iterated over.

        Raises:
            UserError: one of the sources is no parquet file, or cannot be read.
        """
        files = [source.file for source in self.sources if isinstance(source, TableSource)]
        if len(files) < len(self.sources):
            raise no_stream()
        return stream_of(files, split)

    def _uniform(self, table: datasets.Dataset, split: str, form: LabelForm) -> datasets.Dataset:
        features = table.features
        image = columns.image_column(features, self.image_column if self.image_column in features else None)
        label = columns.label_column(features, self.label_column if self.label_column in features else None, form)
        found = columns.labelled(table, label, split, form)
        images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        images = images if image == "image" else images.rename_column(image, "image")
        return images.add_column("label", _names(found), feature=_kind(found))


def _names(found: columns.Labelled) -> list[Any]:
    """The names of the class, or of the list of classes, of each row."""
    if found.targets.ndim == 1:
        return [found.names[i] for i in found.targets]
    return [[found.names[i] for i in np.flatnonzero(row)] for row in found.targets]


def _kind(found: columns.Labelled) -> Any:
    name = datasets.Value("string")
    return name if found.targets.ndim == 1 else datasets.List(name)
