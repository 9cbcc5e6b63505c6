"""Which image files a path means."""

import os
from collections.abc import Iterator
from pathlib import Path

from vitcls.errors import UserError

# What Pillow reads and people keep photos in.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)


def image_files(path: str) -> list[str]:
    """The file itself, or every file below a folder that is named like an image, sorted by path.

    Words and no Paths: of a million files, 110 MB instead of 440.

    Raises:
        UserError: nothing there, no image in the folder, or a folder that cannot be looked into.
    """
    start = Path(path).expanduser()
    if start.is_file():
        return [str(start)]
    if not start.is_dir():
        raise UserError(f"There is no file or folder {path!r} to predict (--data.predict).")
    try:
        files = list(_images_below(str(start)))
    except OSError as error:
        raise UserError(f"The folder {path!r} (--data.predict) could not be searched ({error}).") from error
    if not files:
        raise UserError(
            f"The folder {path!r} (--data.predict) holds no image: none of its files ends in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def _images_below(folder: str) -> Iterator[str]:
    """In the order of their paths' parts; links to folders are not followed."""
    with os.scandir(folder) as entries:
        folders = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    for name in sorted(folders):
        path = os.path.join(folder, name)  # noqa: PTH118 - see `image_files`
        if folders[name]:
            yield from _images_below(path)
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(path):  # noqa: PTH113, PTH122
            yield path
