"""Which source, and which of its splits, each role (train, validation, test) takes its rows from."""

from dataclasses import dataclass
from functools import cached_property

from vitcls.data.sources import DatasetSource, FolderSource, Source, bases_of
from vitcls.errors import UserError

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class SourceChoice:
    """What the user said about sources; the attributes are ImageDataModule's arguments of the same names."""

    dataset: str | None = None
    config_name: str | None = None
    revision: str | None = None
    train_dir: str | None = None
    validation_dir: str | None = None
    test_dir: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None

    def train(self) -> tuple[Source, str]:
        """The source to train on and the split expression there.

        Raises:
            UserError: none is given, or two.
        """
        if self.dataset is not None and self.train_dir is not None:
            raise UserError(
                f"Two sources of training data: --data.dataset {self.dataset!r} and --data.train_dir "
                f"{self.train_dir!r}; set one of them to null."
            )
        if self.train_dir is not None:
            return FolderSource(self.train_dir), "train"
        if self.dataset is None:
            raise UserError(
                "No training data: give --data.dataset (a Hub id, a local folder or 'digits') or "
                "--data.train_dir (a folder with a sub-folder of images for each class)."
            )
        return self._named, self.train_split

    def validation(self) -> tuple[Source, str] | None:
        """The source to validate on; None where a share of the training rows is to be taken."""
        if self.validation_dir is not None:
            return FolderSource(self.validation_dir), "validation"
        if self.dataset is None:
            return None
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
        if self.test_dir is not None:
            return FolderSource(self.test_dir), "test"
        if self.dataset is not None and self.test_split is not None:
            return self._named, self.test_split
        if self.dataset is not None and "test" in self._named.splits:
            return self._named, "test"
        found = f"{self.dataset!r} has no split called test" if self.dataset else "no test folder is given"
        raise UserError(f"There is nothing to test on: {found}. Give --data.test_split or --data.test_dir.")

    @cached_property
    def _named(self) -> DatasetSource:
        assert self.dataset is not None
        return DatasetSource(self.dataset, self.config_name, self.revision)
