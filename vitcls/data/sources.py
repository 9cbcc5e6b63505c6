"""Where rows come from: the Hub, a local dataset, image folders, the embedded digits."""

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from vitcls.data import digits
from vitcls.data.streams import LEAN_SCAN, Stream
from vitcls.errors import UserError, listing, suggestion

log = logging.getLogger(__name__)

DIGITS = "digits"


@dataclass(frozen=True)
class DatasetSource:
    """A dataset with named splits.

    Attributes:
        name: Hub id, local folder that `datasets.load_dataset` understands, or `digits`.
        config_name: configuration of a Hub dataset that has several.
        revision: branch, tag or commit of a Hub dataset.
        split_alone: whether `load` fetches the files of its split only; `datasets` would fetch those of all
            splits, which may be more than the disk holds.
    """

    name: str
    config_name: str | None = None
    revision: str | None = None
    split_alone: bool = False

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits; asked for once, since the Hub answers slowly.

        Raises:
            UserError: the folder does not exist, or the Hub cannot be reached.
        """
        if self.name == DIGITS:
            return ["train", "test"]
        with self._explained():
            return datasets.get_dataset_split_names(self._path(), self.config_name, revision=self.revision)

    def load(self, split: str) -> datasets.Dataset:
        """Rows of one split.

        Args:
            split: a name, or an expression such as `train[:5000]` or `train[90%:]`.

        Raises:
            UserError: no such split, no such folder, or the Hub cannot be reached.
        """
        valid = self.splits
        for base in bases_of(split) - set(valid):
            raise UserError(
                f"{self.name!r} has no split {base!r}: it has {listing(valid)}"
                f"{suggestion(base, valid)}. Choose with --data.train_split, --data.validation_split "
                "or --data.test_split (in predict: --data.predict_split)."
            )
        if self.name == DIGITS:
            return _sliced(split)
        with self._explained():
            where = (self._path(), self.config_name)
            if self.split_alone:
                return datasets.load_dataset(*where, split=split, revision=self.revision, **self._alone(split))
            return datasets.load_dataset(*where, split=split, revision=self.revision)

    def stream(self, split: str) -> Stream:
        """Rows of one split, read while they are iterated over.

        Raises:
            UserError: no such split, a part of one, no such folder, or the Hub cannot be reached.
        """
        if self.name == DIGITS:
            raise UserError("The digits are in memory already; leave --data.streaming out.")
        if split not in self.splits:
            raise UserError(
                f"--data.streaming reads whole splits, but --data.train_split is {split!r}; the splits of "
                f"{self.name!r}: {listing(self.splits)}."
            )
        with self._explained():
            scan = (
                {"fragment_scan_options": LEAN_SCAN} if hasattr(self._builder.config, "fragment_scan_options") else {}
            )
            table = datasets.load_dataset(
                self._path(), self.config_name, split=split, revision=self.revision, streaming=True, **scan
            )
            return Stream(table, self._files[split], self._rows_said(split))

    def _alone(self, split: str) -> dict[str, Any]:
        """The words with which `load_dataset` fetches the files of a split only, as if it fetched all."""
        files = {base: self._files[base] for base in bases_of(split)}
        words = {"data_files": files, "verification_mode": "no_checks", "features": self._builder.info.features}
        names = {PurePosixPath(file).stem for own in files.values() for file in own}
        if hasattr(self._builder.config, "drop_labels") and "metadata" not in names:
            words["drop_labels"] = False  # a split of one class folder has classes too
        return words

    @cached_property
    def _builder(self) -> datasets.DatasetBuilder:
        return datasets.load_dataset_builder(self._path(), self.config_name, revision=self.revision)

    @property
    def _files(self) -> dict[str, list[str]]:
        return dict(self._builder.config.data_files)

    def _rows_said(self, split: str) -> int | None:
        """How many rows the dataset's card says that a split has."""
        said = (self._builder.info.splits or {}).get(split)
        return said.num_examples or None if said is not None else None

    def overlap(self, one: str, other: str) -> bool:
        """Whether two split expressions, such as `train` and `train[:10]`, share rows."""
        if not bases_of(one) & bases_of(other):
            return False
        if {one, other} & bases_of(one) & bases_of(other):
            return True  # one of them is the whole split
        lengths = {base: len(self.load(base)) for base in bases_of(one) | bases_of(other)}
        parts = [datasets.ReadInstruction.from_spec(split).to_absolute(lengths) for split in (one, other)]
        return any(
            a.splitname == b.splitname and max(a.from_ or 0, b.from_ or 0) < min(_end(a, lengths), _end(b, lengths))
            for a in parts[0]
            for b in parts[1]
        )

    def _path(self) -> str:
        path = Path(self.name).expanduser()
        if path.exists():
            return str(path)
        if path.is_absolute() or self.name.startswith((".", "~")) or self.name.count("/") > 1:
            raise UserError(
                f"The dataset folder {self.name!r} does not exist. Give an existing folder, a Hub id "
                "(owner/name) or 'digits' with --data.dataset."
            )
        return self.name

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            raise UserError(
                f"The dataset {self.name!r} could not be had from the Hugging Face Hub "
                f"({_first_line(error)}). Offline: give a local folder with --data.dataset (sub-folders "
                "train and test with one folder for each class, or parquet files), --data.train_dir, or "
                "the embedded 'digits'; or fetch it where there is a network with `hf download "
                f"--repo-type dataset {self.name} --local-dir FOLDER`."
            ) from error
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
            raise UserError(
                f"The dataset {self.name!r} could not be read ({_first_line(error)}). It needs image "
                "folders or parquet files, one sub-folder or file for each split; check "
                "--data.dataset, --data.config_name and the split expressions."
            ) from error


@dataclass(frozen=True)
class FolderSource:
    """A folder with one sub-folder of images for each class."""

    folder: str

    def load(self, split: str) -> datasets.Dataset:
        """Rows of the folder, as the split called `split`.

        Raises:
            UserError: no such folder, no images in it, or no class folders.
        """
        folder = Path(self.folder).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"The image folder {self.folder!r} (--data.{split}_dir) does not exist. It should hold "
                "one sub-folder of images for each class."
            )
        files = {split: f"{glob.escape(str(folder))}/**"}
        try:
            table = datasets.load_dataset("imagefolder", data_files=files, split=split, drop_labels=False)
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
            raise UserError(
                f"The image folder {self.folder!r} (--data.{split}_dir) could not be read "
                f"({_first_line(error)}). It should hold one sub-folder of images for each class."
            ) from error
        _check_depth(table, folder)
        found = set(table.features["label"].names)
        empty = [d.name for d in sorted(folder.iterdir()) if d.is_dir() and d.name[0] != "." and d.name not in found]
        if empty:
            log.warning("no images in %s: %s", folder, listing(empty))
        return table

    def stream(self, split: str) -> Stream:
        """Refused: files in folders are on the disk already."""
        raise no_stream()


def no_stream() -> UserError:
    """Of what cannot be streamed, or need not be."""
    return UserError(
        "--data.streaming reads parquet files (--data.train_files) or a dataset (--data.dataset); image folders are "
        "read file by file anyway, so leave it out."
    )


def _check_depth(table: datasets.Dataset, folder: Path) -> None:
    """Images must lie in class folders: `datasets` takes whatever folder they lie in for their class."""
    for row in table.cast_column("image", datasets.Image(decode=False))["image"]:
        path = Path(row["path"])
        if path.parent.parent.resolve() != folder.resolve():
            raise UserError(
                f"The image {path} does not lie in a class folder of {folder}: its class would be "
                f"{path.parent.name!r}. Every image must be {folder}/CLASS/FILE; move it or remove it."
            )


def bases_of(split: str) -> set[str]:
    """The split names in an expression: train and test of `train[:500]+test`.

    Raises:
        UserError: no such expression.
    """
    if split:
        try:
            datasets.ReadInstruction.from_spec(split)
        except (ValueError, AssertionError, TypeError) as error:
            raise _bad_expression(split) from error
    return {part.split("[")[0].strip() for part in split.split("+") if part}


def _sliced(split: str) -> datasets.Dataset:
    """The digits that a split expression means, in memory."""
    tables = {base: digits.load(base) for base in bases_of(split)}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({n: len(t) for n, t in tables.items()})
    except (ValueError, AssertionError, KeyError) as error:
        raise _bad_expression(split) from error
    chosen = []
    for part in parts:
        table = tables[part.splitname]
        chosen.append(table.select(range(part.from_ or 0, len(table) if part.to is None else part.to)))
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _end(part: datasets.ReadInstruction, lengths: dict[str, int]) -> int:
    return lengths[part.splitname] if part.to is None else part.to


def _bad_expression(split: str) -> UserError:
    return UserError(
        f"The split expression {split!r} cannot be read; write it like 'train', 'train[:500]' or 'train[90%:]'."
    )


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
    text = str(cause or error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
