"""What predict takes: files, folders, patterns, tables, datasets."""

import glob
from pathlib import Path

import datasets
import numpy as np

from vitcls.data import columns
from vitcls.data.files import image_files
from vitcls.data.rows import FileImages, Inputs, TableImages
from vitcls.data.sources import DatasetSource
from vitcls.data.splits import Split
from vitcls.data.tables import SUFFIXES, TableSource
from vitcls.errors import UserError


def images_to_predict(place: str | None, dataset: str | None, split: str, image_column: str | None) -> Inputs:
    """What ImageDataModule's `predict`, `predict_dataset` and `predict_split` name.

    Raises:
        UserError: neither is given, or there are no images.
    """
    if dataset is not None and place is not None:
        raise UserError(
            f"Two things to predict: --data.predict {place!r} and --data.predict_dataset {dataset!r}; give one of them."
        )
    if dataset is not None:
        return images_of_dataset(dataset, split, image_column)
    if place is None:
        raise UserError(
            "Nothing to predict: give --data.predict with an image file, a folder, a pattern or a table, or "
            "--data.predict_dataset."
        )
    return images_at(place, image_column)


def images_at(place: str, image_column: str | None = None) -> Inputs:
    """The images of a file, of a folder with its sub-folders, of a table, or of a pattern of files or tables.

    Raises:
        UserError: there are none.
    """
    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        files = [path]
    elif path.exists() or not glob.has_magic(place):
        return FileImages(image_files(place))
    else:
        files = _matching(str(path))
    if not all(file.suffix.lower() in SUFFIXES for file in files):
        return FileImages(files)
    tables = [_image_column_of(TableSource(str(file)).load("predict"), image_column) for file in files]
    return _images_of(datasets.concatenate_datasets(tables), place)


def images_of_dataset(name: str, split: str, image_column: str | None) -> Inputs:
    """The images of a dataset's split; labels, if it has some, are not read.

    Raises:
        UserError: no such dataset or split, or no images in it.
    """
    return _images_of(_image_column_of(DatasetSource(name).load(split), image_column), f"{split} of {name}")


def unlabelled(table: datasets.Dataset, name: str, image_column: str | None = None) -> Split:
    """All rows of a table as a split without classes.

    Raises:
        UserError: it is not clear which column holds the images.
    """
    column = columns.image_column(table.features, image_column)
    rows = np.arange(len(table))
    return Split(name, table, rows, targets=np.full(len(rows), -1), image_column=column, fingerprint="")


def _image_column_of(table: datasets.Dataset, image_column: str | None) -> datasets.Dataset:
    """The images alone, as a column `image`; a name that was given for other data does not count."""
    column = columns.image_column(table.features, image_column if image_column in table.features else None)
    images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return images if column == "image" else images.rename_column(column, "image")


def _images_of(table: datasets.Dataset, name: str) -> TableImages:
    return TableImages(unlabelled(table, name), files_have_names=True)


def _matching(pattern: str) -> list[Path]:
    found = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"No file matches {pattern!r} (--data.predict).")
    return found
