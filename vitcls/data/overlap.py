"""Whether two roles would take the same rows."""

from pathlib import Path

from vitcls.data.choice import Source
from vitcls.data.joined import JoinedSource
from vitcls.data.sources import DatasetSource, FolderSource


def share_rows(one: tuple[Source, str], other: tuple[Source, str]) -> bool:
    """Whether two choices of a source and a split there have rows in common.

    By place: the same dataset with slices that overlap, the same file or folder. Copies of photos under
    other names are not found here; `check` does.
    """
    if isinstance(one[0], DatasetSource) and one[0] == other[0]:
        return one[0].overlap(one[1], other[1])
    return not _places(one[0]).isdisjoint(_places(other[0]))


def _places(source: Source) -> set[Path]:
    if isinstance(source, JoinedSource):
        return {place for part in source.sources for place in _places(part)}
    if isinstance(source, DatasetSource):
        return set()
    return {Path(source.folder if isinstance(source, FolderSource) else source.file).expanduser().resolve()}
