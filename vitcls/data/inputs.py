"""What predict takes: files, folders, patterns, tables, datasets."""

import glob
from pathlib import Path

import datasets
import numpy as np

from vitcls.data import columns
from vitcls.data.files import image_files
from vitcls.data.rows import FileImages, Images, TableImages
from vitcls.data.sources import DatasetSource
from vitcls.data.splits import Split
from vitcls.data.tables import SUFFIXES, TableSource
from vitcls.errors import UserError


def images_to_predict(place: str | None, dataset: str | None, split: str, image_column: str | None) -> Images:
    """What ImageDataModule's `predict`, `predict_dataset` and `predict_split` name.

    Raises:
        UserError: neither is given, or there are no images.
    """
    if dataset is not None:
        return images_of_dataset(dataset, split, image_column)
    if place is None:
        raise UserError(
            "Nothing to predict: give --data.predict with an image file, a folder, a pattern or a table, or "
            "--data.predict_dataset."
        )
    return images_at(place)


def images_at(place: str) -> Images:
    """The images of a file, of a folder with its sub-folders, of a pattern, or of a table.

    Raises:
        UserError: there are none.
    """
    path = Path(place).expanduser()
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _images_of(TableSource(place).load("predict"), place)
    if not path.exists() and glob.has_magic(place):
        return FileImages(_matching(str(path)))
    return FileImages(image_files(place))


def images_of_dataset(name: str, split: str, image_column: str | None) -> Images:
    """The images of a dataset's split; labels, if it has some, are not read.

    Raises:
        UserError: no such dataset or split, or no images in it.
    """
    return _images_of(DatasetSource(name).load(split), f"{split} of {name}", image_column)


def unlabelled(table: datasets.Dataset, name: str, image_column: str | None = None) -> Split:
    """All rows of a table as a split without classes.

    Raises:
        UserError: it is not clear which column holds the images.
    """
    column = columns.image_column(table.features, image_column)
    rows = np.arange(len(table))
    return Split(name, table, rows, targets=np.full(len(rows), -1), image_column=column, fingerprint="")


def _images_of(table: datasets.Dataset, name: str, image_column: str | None = None) -> TableImages:
    return TableImages(unlabelled(table, name, image_column), files_have_names=True)


def _matching(pattern: str) -> list[Path]:
    found = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"No file matches {pattern!r} (--data.predict).")
    return found
