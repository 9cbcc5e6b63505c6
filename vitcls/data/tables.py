"""Tables in files: parquet and arrow with the images inside, CSV and JSON lines with their paths."""

import csv
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from vitcls.data.label_form import is_string
from vitcls.data.streams import LEAN_SCAN, Stream
from vitcls.errors import UserError, listing

# What a column of paths is called; metadata.csv of an image folder says `file_name`.
PATH_NAMES = ("image", "path", "image_path", "file", "file_name", "filename", "filepath")
_LOOKED_AT = 20  # rows; where none of their files exists, the paths are relative to something else
_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
}
SUFFIXES = frozenset(_BUILDERS)


@dataclass(frozen=True)
class TableSource:
    """A file with a row for each image.

    Attributes:
        file: .parquet or .arrow (a column of images, or of their encoded bytes), .csv, .tsv or .jsonl (a
            column of paths, relative to the file, and one of classes).
    """

    file: str

    def load(self, split: str) -> datasets.Dataset:
        """Its rows, as the split called `split`, with a column of type Image.

        Raises:
            UserError: it cannot be read, or has no images.
        """
        file = Path(self.file).expanduser()
        if file.suffix.lower() not in _BUILDERS:
            raise UserError(f"{self.file!r} is no table of images; it must end in {', '.join(_BUILDERS)}.")
        try:
            table = datasets.load_dataset(
                _BUILDERS[file.suffix.lower()],
                data_files={split: glob.escape(str(file.resolve()))},
                split=split,
                **_text_options(file),
            )
        except (ValueError, OSError, csv.Error, datasets.exceptions.DatasetGenerationError) as error:
            cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"The table {self.file!r} could not be read ({cause[0]}).") from error
        return _with_images(table, file)

    def stream(self, split: str) -> Stream:
        """Its rows, read while they are iterated over; as `stream_of`."""
        return stream_of([self.file], split)


def stream_of(files: Sequence[str], split: str) -> Stream:
    """The rows of parquet files, read while they are iterated over.

    Raises:
        UserError: a file is not parquet, cannot be read, or has no images in it.
    """
    others = [file for file in files if Path(file).suffix.lower() != ".parquet"]
    if others:
        raise UserError(f"--data.streaming reads parquet files, but {others[0]!r} is none; leave it out for tables.")
    places = [str(Path(file).expanduser().resolve()) for file in files]
    try:
        table = datasets.load_dataset(
            "parquet",
            data_files={split: [glob.escape(place) for place in places]},
            split=split,
            streaming=True,
            fragment_scan_options=LEAN_SCAN,
        )
        return Stream(_with_images(table, Path(files[0]), streamed=True), places)
    except (ValueError, OSError) as error:
        raise UserError(f"The files from {files[0]!r} on could not be read ({error}).") from error


def table_files(pattern: str) -> list[str]:
    """The file, or those that a pattern such as `shards/*.parquet` means, sorted.

    Raises:
        UserError: none.
    """
    if Path(pattern).expanduser().is_file():
        return [pattern]
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207 - a pattern may be absolute
    if not found:
        raise UserError(
            f"There is no file {pattern!r}; give parquet, arrow, CSV or JSON-lines files, or a pattern of them."
        )
    return found


def _text_options(file: Path) -> dict[str, Any]:
    """Every column of a CSV is text: `007` and `NA` are names of classes, no number and no gap."""
    if file.suffix.lower() not in (".csv", ".tsv"):
        return {}
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(newline="", encoding="utf-8-sig") as lines:
        names = next(csv.reader(lines, delimiter=separator), [])
    text = datasets.Features({name: datasets.Value("string") for name in names})
    return {"sep": separator, "features": text, "keep_default_na": False, "encoding": "utf-8-sig"}


def _with_images(table: Any, file: Path, streamed: bool = False) -> Any:
    """With a column of type Image made of encoded bytes or of paths, where there is none."""
    features = table.features
    if any(isinstance(feature, datasets.Image) for feature in features.values()):
        return table
    encoded = [name for name, feature in features.items() if _holds_bytes(feature)]
    if encoded:
        return table.cast_column(encoded[0], datasets.Image()) if len(encoded) == 1 else table
    paths = [] if streamed else [name for name in PATH_NAMES if is_string(features.get(name))]
    if not paths:
        found = listing(f"{name} ({getattr(feature, 'dtype', feature)})" for name, feature in features.items())
        raise UserError(
            f"The table {str(file)!r} has no column of images, of their bytes, or of their paths (called "
            f"{', '.join(PATH_NAMES)}): {found}."
        )
    return _with_files(table, paths[0], file)


def _with_files(table: datasets.Dataset, column: str, file: Path) -> datasets.Dataset:
    """With the column of paths, relative to the table's own folder, as images."""
    folder = file.resolve().parent
    first = [folder / path for path in table[:_LOOKED_AT][column] if path]
    if first and not any(path.is_file() for path in first):
        raise UserError(
            f"None of the files that {str(file)!r} names first exists ({first[0]}); paths are relative to the "
            "table's own folder, or absolute."
        )
    features = table.features.copy()
    features[column] = datasets.Image(decode=False)
    return table.map(
        _located, batched=True, fn_kwargs={"column": column, "folder": str(folder)}, features=features, desc="paths"
    )


def _located(rows: dict[str, list[Any]], column: str, folder: str) -> dict[str, list[Any]]:
    places = [{"bytes": None, "path": str(Path(folder) / path)} if path else None for path in rows[column]]
    return {column: places}


def _holds_bytes(feature: object) -> bool:
    if isinstance(feature, dict):  # a struct, as a file without the features of `datasets` has it
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
