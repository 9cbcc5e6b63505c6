"""Several sources as one."""

from dataclasses import dataclass

import datasets

from vitcls.data import columns
from vitcls.data.sources import DatasetSource, FolderSource
from vitcls.data.tables import TableSource

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

    def load(self, split: str) -> datasets.Dataset:
        """Columns `image` (Image) and `label` (string).

        Raises:
            UserError: one of the sources cannot be read, or its columns are ambiguous.
        """
        return datasets.concatenate_datasets([self._uniform(source.load(split), split) for source in self.sources])

    def _uniform(self, table: datasets.Dataset, split: str) -> datasets.Dataset:
        features = table.features
        image = columns.image_column(features, self.image_column if self.image_column in features else None)
        label = columns.label_column(features, self.label_column if self.label_column in features else None)
        found = columns.labelled(table, label, where=split)
        names = [found.names[i] for i in found.ids]
        images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        images = images if image == "image" else images.rename_column(image, "image")
        return images.add_column("label", names)
