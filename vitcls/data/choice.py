"""Which source, and which of its splits, each role (train, validation, test) takes its rows from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitcls.data.joined import JoinedSource, OneSource
from vitcls.data.sources import DatasetSource, FolderSource, bases_of
from vitcls.data.tables import TableSource, table_files
from vitcls.errors import UserError

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
Source = OneSource | JoinedSource
Places = str | list[str]
TRAINING = ("dataset", "train_dir", "train_files")  # each of these names the training data


@dataclass(frozen=True)
class SourceChoice:
    """What the user said about sources; the attributes are ImageDataModule's arguments of the same names."""

    dataset: str | None = None
    config_name: str | None = None
    revision: str | None = None
    train_dir: Places | None = None
    validation_dir: Places | None = None
    test_dir: Places | None = None
    train_files: Places | None = None
    validation_files: Places | None = None
    test_files: Places | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_delimiter: str | None = None
    streaming: bool = False
    train_rows: int | None = None

    def trains(self) -> bool:
        """Whether training data is named."""
        return any(getattr(self, name) is not None for name in TRAINING)

    def train(self) -> tuple[Source, str]:
        """The source to train on and the split expression there.

        Raises:
            UserError: none is given, or two.
        """
        local = self._local("train", self.train_dir, self.train_files)
        if self.dataset is not None and local is not None:
            raise UserError(
                f"Two sources of training data: --data.dataset {self.dataset!r} and --data.train_dir "
                f"or train_files {self.train_dir or self.train_files!r}; set one of them to null."
            )
        if local is not None and self.train_split != "train":
            raise UserError(
                f"--data.train_split {self.train_split!r} is for --data.dataset; of folders and files all rows are "
                "taken. Leave it out, or take fewer rows with --data.train_limit."
            )
        if local is not None:
            return local
        if self.dataset is None:
            raise UserError(
                "No training data: give --data.dataset (a Hub id, a local folder or 'digits'), "
                "--data.train_dir (a folder with a sub-folder of images for each class) or --data.train_files "
                "(parquet, CSV or JSON-lines files)."
            )
        return self._named, self.train_split

    def validation(self) -> tuple[Source, str] | None:
        """The source to validate on; None where a share of the training rows is to be taken."""
        local = self._local("validation", self.validation_dir, self.validation_files)
        if local is not None or self.dataset is None:
            return local
        if self.validation_split is not None:
            return self._named, self.validation_split
        taken = bases_of(self.train_split) | bases_of(self.test_split or "")
        usual = [n for n in self._named.splits if n in VALIDATION_NAMES and n not in taken]
        return (self._named, usual[0]) if usual else None

    def test(self) -> tuple[Source, str]:
        """The source to test on.

        Raises:
            UserError: there is none.
        """
        local = self._local("test", self.test_dir, self.test_files)
        if local is not None:
            return local
        if self.dataset is not None and self.test_split is not None:
            return self._named, self.test_split
        if self.dataset is not None and "test" in self._named.splits:
            return self._named, "test"
        found = f"{self.dataset!r} has no split called test" if self.dataset else "no test folder is given"
        raise UserError(
            f"There is nothing to test on: {found}. Give --data.test_split, --data.test_dir or --data.test_files."
        )

    @cached_property
    def _named(self) -> DatasetSource:
        assert self.dataset is not None
        return DatasetSource(self.dataset, self.config_name, self.revision, split_alone=self.streaming)

    def _local(self, role: str, folders: Places | None, files: Places | None) -> tuple[Source, str] | None:
        """The folders and files of a role, as one source, and its split there."""
        sources: list[OneSource] = [FolderSource(folder) for folder in _listed(folders)]
        sources += [TableSource(file) for pattern in _listed(files) for file in table_files(pattern)]
        if len(sources) > 1:
            return JoinedSource(tuple(sources), self.image_column, self.label_column), role
        return (sources[0], role) if sources else None


def _listed(places: Places | None) -> list[str]:
    return [] if places is None else [places] if isinstance(places, str) else list(places)


def as_text(places: Any) -> Any:
    """Plain strings of what may be paths, as checkpoints hold them: a place, a list of them, or None."""
    if isinstance(places, (list, tuple)):
        return [str(place) for place in places]
    return None if places is None else str(places)
